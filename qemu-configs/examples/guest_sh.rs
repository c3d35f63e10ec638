//! Boots the test guest on vfio-user sockets and runs shell commands in it: `guest_sh SOCKET[,SOCKET…] COMMAND…`.

use qemu_configs::Guest;
use std::time::Duration;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let sockets = arguments.next().unwrap_or_default();
    let mut guest = Guest::builder().cmdline(&std::env::var("GUEST_CMDLINE").unwrap_or_default());
    for socket in sockets.split(',').filter(|socket| !socket.is_empty()) {
        guest = guest.disk(socket);
    }
    let guest = guest.args(std::env::var("GUEST_ARGS").unwrap_or_default().split_whitespace()).start()?;
    eprintln!("booted in {:?}", guest.boot_time());
    for command in arguments {
        let output = guest.sh(&command, Duration::from_secs(300))?;
        println!("$ {command}\n{}{}[{:?}]", output.out, output.err, output.code);
    }
    Ok(())
}
