//! What the known clients send, byte for byte, and what they get: `tests/transcripts/*.txt`.
//!
//! `>` starts a request and `<` a reply; hexadecimal bytes (`00*8`: eight times) or quoted text, over as many
//! indented lines as it takes; `#` starts a comment. `with KIND` attaches a descriptor to the next request: `memory` (64 pages) or
//! `event`. `takes N` says how many descriptors come with the next reply. Requests that follow one another
//! without a reply between are pipelined, in one write each.

use std::os::fd::OwnedFd;
use std::path::Path;

use zerocopy::IntoBytes;

use super::support::*;

#[derive(Default)]
struct Line {
    number: usize,
    reply: bool,
    bytes: Vec<u8>,
    fds: Vec<String>,
}

fn parse(text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut fds = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap();
        let rest = match line.chars().next() {
            None => continue,
            Some(direction @ ('>' | '<')) => {
                let fds = std::mem::take(&mut fds);
                lines.push(Line { number, reply: direction == '<', bytes: Vec::new(), fds });
                &line[1..]
            }
            Some(' ') => line,
            Some(_) => {
                let (_, what) = line.trim().split_once(' ').unwrap();
                fds.push(what.to_owned());
                continue;
            }
        };
        if rest.trim().is_empty() {
            continue;
        }
        let bytes = &mut lines.last_mut().unwrap().bytes;
        for (i, part) in rest.split('"').enumerate() {
            if i % 2 == 1 {
                bytes.extend_from_slice(part.replace('\'', "\"").as_bytes());
                continue;
            }
            for word in part.split_whitespace() {
                let (digits, times) = match word.split_once('*') {
                    Some((digits, times)) => (digits, times.parse().unwrap()),
                    None => (word, 1),
                };
                let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
                let word: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
                bytes.extend(word.repeat(times));
            }
        }
    }
    lines
}

fn replay(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name);
    let lines = parse(&std::fs::read_to_string(path).unwrap());
    assert!(lines.len() > 20);
    leaves_nothing(|server, client| {
        drop(std::mem::replace(client, Client::new(std::os::unix::net::UnixStream::pair().unwrap().0)));
        server.wait_detached(2);
        let mut client = server.dial();
        for line in &lines {
            if line.reply {
                let takes: usize = line.fds.first().map_or(0, |n| n.parse().unwrap());
                let got = client.receive().expect("a reply");
                let bytes = [got.header.as_bytes(), &got.body].concat();
                assert_eq!(hex(&bytes), hex(&line.bytes), "reply at line {} of {name}", line.number);
                assert_eq!(got.fds.len(), takes, "descriptors at line {} of {name}", line.number);
            } else {
                let fds: Vec<OwnedFd> = line.fds.iter().map(|kind| descriptor(kind)).collect();
                client.send(&line.bytes, &borrow(&fds));
            }
        }
    });
}

fn descriptor(kind: &str) -> OwnedFd {
    match kind {
        "memory" => guest(64),
        "event" => eventfd(),
        other => panic!("unknown descriptor {other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(4).map(|c| c.iter().map(|b| format!("{b:02x}")).collect::<String>() + " ").collect()
}

#[test]
fn qemu() {
    replay("qemu-11.1.3.txt");
}

#[test]
fn cloud_hypervisor() {
    replay("cloud-hypervisor-vfio_user-0.1.5.txt");
}

#[test]
fn spdk() {
    replay("spdk-26.09.txt");
}
