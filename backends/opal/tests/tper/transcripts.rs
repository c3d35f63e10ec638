//! Byte by byte.

use super::client::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex")).collect()
}

#[test]
fn a_session_reads_the_msid() {
    let mut host = Host::new();
    let start = hex("00000000 1000 0000 00000000 00000000 0000004c 00000000 00000000 00000000 0000 0000 00000000 00000034
        000000000000 0000 00000027 f8 a800000000000000ff a8000000000000ff02 f0 8169 a80000020500000001 01 f1 f9 f0 00 00 00 f1 00");
    assert_eq!(
        host.raw(&start),
        hex("00000000 1000 0000 00000000 00000000 00000044 00000000 00000000 00000000 0000 0000 00000000 0000002c
            000000000000 0000 00000020 f8 a800000000000000ff a8000000000000ff03 f0 8169 821000 f1 f9 f0 00 00 00 f1")
    );
    let get = hex("00000000 1000 0000 00000000 00000000 0000004c 00001000 00000069 00000000 0000 0000 00000000 00000034
        000000000000 0000 00000025 f8 a80000000b00008402 a80000000600000016 f0 f0 f2 03 03 f3 f2 04 03 f3 f1 f1 f9 f0 00 00 00 f1 000000");
    let answer = host.raw(&get);
    let mut expected = hex(
        "00000000 1000 0000 00000000 00000000 00000054 00001000 00000069 00000000 0000 0000 00000000 0000003c
        000000000000 0000 0000002f f0 f0 f2 03 d020",
    );
    expected.extend(&answer[62..94]);
    expected.extend(hex("f3 f1 f1 f9 f0 00 00 00 f1 00"));
    assert_eq!(answer, expected);
    assert!(answer[62..94].iter().all(u8::is_ascii_alphanumeric));
    // With what Linux sends behind the end of a session.
    let end = frame(0x1000, 0x69, &hex("fa f1 f9 f0 00 00 00 f1"));
    assert_eq!(
        host.raw(&end),
        hex("00000000 1000 0000 00000000 00000000 00000028 00001000 00000069 00000000 0000 0000 00000000 00000010
            000000000000 0000 00000001 fa 000000")
    );
}

#[test]
fn a_wrong_pin_is_refused() {
    let mut host = Host::new();
    let args = [
        &hex("8169")[..],
        &uid(ADMIN_SP),
        &hex("01 f2 00"),
        &bytes(b"wrong"),
        &hex("f3 f2 03"),
        &uid(SID),
        &hex("f3"),
    ]
    .concat();
    let answer = host.raw(&frame(0, 0, &method_call(0xFF, 0xFF02, &args)));
    assert_eq!(
        answer,
        hex("00000000 1000 0000 00000000 00000000 00000044 00000000 00000000 00000000 0000 0000 00000000 0000002c
            000000000000 0000 0000001e f8 a800000000000000ff a8000000000000ff03 f0 8169 00 f1 f9 f0 01 00 00 f1 0000")
    );
}

#[test]
fn level_0_discovery() {
    let mut host = Host::new();
    let found = host.tper.receive(1, 1, 2048).expect("discovery");
    let expected = hex("000000d4 00000001 0000000000000000
        0000000000000000000000000000000000000000000000000000000000000000
        0001 10 0c 51 00 00 00 00 00 00 00 00 00 00 00
        0002 20 0c 09 00 00 00 00 00 00 00 00 00 00 00
        0003 10 1c 01 00 00 00 00 00 00 00 00000200 0000000000000008 0000000000000000
        0201 10 0c 00000011 00 00 00 00 00 00 00 00
        0202 10 0c 0000 0011 00f00000 00000001
        0203 20 10 1000 0001 00 0004 0010 00 00 00 00 00 00 00
        0402 10 0c 00 00 00 00 00 00 00 00 00 00 00 00
        0404 10 20 0000 04 0000000000000000000000000000000000000000000000000000000000");
    assert_eq!(found, expected);
    // The drive is taken, and its global range locked.
    host.own(b"pin");
    let set = [(5, vec![1]), (6, vec![1]), (7, vec![1]), (8, vec![1])];
    host.within(LOCKING_SP, Some((ADMIN1, b"pin")), |host| host.set(GLOBAL, &set)).expect("locked");
    let found = host.tper.receive(1, 1, 2048).expect("discovery");
    assert_eq!(found[68], 0x0F, "{found:02x?}");
    assert_eq!(found[expected.len() - 36 - 12], 1, "the SID's PIN is its own");
}

#[test]
fn supported_protocols_and_stack_reset() {
    let mut host = Host::new();
    assert_eq!(host.tper.receive(0, 0, 512), Ok(hex("000000000000 0003 00 01 02")));
    assert_eq!(host.tper.receive(0, 1, 512), Ok(hex("00000000")));
    host.start(ADMIN_SP, None).expect("a session");
    host.tper.send(2, 0x1000, &hex("10000000 00000002"), std::time::Instant::now()).expect("sent");
    assert_eq!(host.tper.receive(2, 0x1000, 512), Ok(hex("10000000 00000002 0000 0004 00000000")));
    assert_eq!(host.tper.sessions(), 0);
}

#[test]
fn properties_echo_the_hosts() {
    let mut host = Host::new();
    let name = |name: &str, value: &[u8]| [&[0xF2][..], &bytes(name.as_bytes()), value, &[0xF3]].concat();
    let args = [
        &hex("f2 00 f0")[..],
        &name("MaxComPacketSize", &hex("820800")),
        &name("Unknown", &[1]),
        &hex("f1 f3"),
    ]
    .concat();
    let answer = host.exchange(0, 0, &method_call(0xFF, 0xFF01, &args));
    let results = result(&answer[19..]).expect("properties");
    let find = |text: &str| results.windows(text.len()).position(|part| part == text.as_bytes());
    assert!(find("MaxComPacketSize") < find("MaxIndTokenSize"));
    assert!(find("Unknown").is_none());
    let own = find("MaxComPacketSize").expect("there") + 16;
    assert_eq!(results[own..own + 4], hex("83010000"));
}
