//! What no honest host sends.

use std::time::{Duration, Instant};

use block::security::SecurityError;
use proptest::prelude::*;

use super::client::*;

#[test]
fn the_synchronous_protocol_is_kept() {
    let mut host = Host::new();
    let empty = host.tper.receive(1, 0x1000, 2048).expect("nothing");
    assert_eq!(empty, [&[0, 0, 0, 0, 0x10][..], &[0; 15]].concat());
    let start = frame(0, 0, &method_call(0xFF, 0xFF01, &[]));
    let now = Instant::now();
    host.tper.send(1, 0x1000, &start, now).expect("sent");
    assert_eq!(host.tper.send(1, 0x1000, &start, now), Err(SecurityError::Sequence));
    // Too little room: how much it takes, and it is still there.
    let short = host.tper.receive(1, 0x1000, 64).expect("a header");
    assert_eq!((short.len(), &short[16..]), (20, &[0; 4][..]));
    assert_eq!(short[8..12], short[12..16]);
    assert!(host.tper.receive(1, 0x1000, 2048).expect("all of it").len() > 64);
    // An answer that nobody fetches does not close the drive for ever.
    host.tper.send(1, 0x1000, &start, now).expect("sent");
    host.tper.send(1, 0x1000, &start, now + Duration::from_secs(61)).expect("sent");
}

#[test]
fn what_is_not_served_changes_nothing() {
    let mut host = Host::new();
    let now = Instant::now();
    for (protocol, specific) in [(1, 0x1001), (1, 0), (3, 0x1000), (0xEF, 0), (2, 4), (2, 0x1001)] {
        assert_eq!(host.tper.send(protocol, specific, &[0; 512], now), Err(SecurityError::InvalidField));
    }
    assert_eq!(host.tper.send(1, 0x1000, &vec![0; 65_537], now), Err(SecurityError::InvalidField));
    assert_eq!(host.tper.receive(1, 0x1001, 512), Err(SecurityError::InvalidField));
}

#[test]
fn unknown_sessions_and_broken_packets_get_no_answer() {
    let mut host = Host::new();
    host.start(ADMIN_SP, None).expect("a session");
    let good = frame(host.tsn, HSN, &method_call(THIS_SP, RANDOM, &[1]));
    let nothing = [&[0, 0, 0, 0, 0x10][..], &[0; 15]].concat();
    // sedutil ends a session that was refused with this.
    assert_eq!(host.raw(&frame(0, 0, &[0xFA])), nothing);
    assert_eq!(host.raw(&frame(host.tsn + 1, HSN, &[0xFA])), nothing);
    assert_eq!(host.raw(&frame(host.tsn, HSN + 1, &[0xFA])), nothing);
    for at in [16, 17, 40, 52] {
        let mut broken = good.clone();
        broken[at] ^= 0x40;
        assert_eq!(host.raw(&broken), nothing, "byte {at}");
    }
    assert_eq!(host.raw(&good[..40]), nothing);
    assert_eq!(host.raw(&[0; 512]), nothing);
    // The session is still there.
    host.call(THIS_SP, RANDOM, &[1]).expect("bytes");
}

#[test]
fn unexpected_tokens_get_their_status() {
    let mut host = Host::new();
    host.start(ADMIN_SP, None).expect("a session");
    let tsn = host.tsn;
    let mut status = |stream: &[u8]| result(&host.exchange(tsn, HSN, stream)).err();
    // In the place of the object, and of the method.
    assert_eq!(status(&[0xF8, 1, 0xF0]), Some(1));
    assert_eq!(status(&[&[0xF8][..], &uid(THIS_SP), &[0xF0, 0xF1]].concat()), Some(1));
    assert_eq!(status(&method_call(0x1234, GET, &[0xF0, 0xF1])), Some(1));
    assert_eq!(status(&method_call(THIS_SP, 0x0000_0006_0000_00FF, &[])), Some(1));
    // In the parameters: too many, too few, of other types, too deep, too large.
    for args in [&[1, 1][..], &[], &[0xF0, 0xF1], &[0xA1, 1], &[0x41], &[0xF2, 0, 1, 0xF3]] {
        assert_eq!(status(&method_call(THIS_SP, RANDOM, args)), Some(0x0C), "{args:02x?}");
    }
    let huge = [&[0x8F][..], &[1; 15]].concat();
    assert_eq!(status(&method_call(THIS_SP, RANDOM, &huge)), Some(0x0C));
    let deep = [vec![0xF0; 10_000], vec![0xF1; 10_000]].concat();
    assert_eq!(status(&method_call(C_PIN_MSID, GET, &deep)), Some(0x0C));
    // What is no token at all ends the session.
    let closed = host.exchange(tsn, HSN, &[0xF4]);
    assert_eq!(closed[..19], [&[0xF8][..], &uid(0xFF), &uid(0xFF06)].concat());
    assert_eq!(host.tper.sessions(), 0);
}

#[test]
fn an_atom_longer_than_the_stream_ends_the_session() {
    let mut host = Host::new();
    host.start(ADMIN_SP, None).expect("a session");
    let answer = host.exchange(host.tsn, HSN, &[0xE2, 0xFF, 0xFF, 0xFF, 1]);
    assert_eq!(answer[..19], [&[0xF8][..], &uid(0xFF), &uid(0xFF06)].concat());
}

#[test]
fn ranges_do_not_overlap_and_lie_on_the_drive() {
    let mut host = Host::new();
    host.own(b"admin");
    let number = |value: u64| [&[0x88][..], &value.to_be_bytes()].concat();
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        let mut place = |range: u64, start: u64, length: u64| {
            host.set(RANGE | range, &[(3, number(start)), (4, number(length))])
        };
        place(1, 8, 80).expect("set up");
        for (start, length) in [(0, 16), (80, 8), (8, 80), (16, 8), (0, 800)] {
            assert_eq!(place(2, start, length), Err(0x0C), "{start} {length}");
        }
        assert_eq!(place(2, 9, 8), Err(0x0C), "not aligned");
        assert_eq!(place(2, 96, 7), Err(0x0C), "not aligned");
        assert_eq!(place(2, u64::MAX - 7, 8), Err(0x0C));
        assert_eq!(place(2, 0, u64::MAX), Err(0x0C));
        let blocks = layout().blocks;
        assert_eq!(place(2, blocks - 8, 16), Err(0x0C));
        place(2, blocks - 8, 8).expect("the last blocks");
        place(3, 0, 8).expect("before the first");
        place(4, 0, 0).expect("nothing overlaps nothing");
    });
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        assert_eq!(host.set(GLOBAL, &[(3, vec![0])]), Err(1), "what is global has no place");
    });
}

#[test]
fn a_session_that_writes_is_alone_and_does_not_last_for_ever() {
    let mut host = Host::new();
    host.start(ADMIN_SP, None).expect("a session");
    assert_eq!(host.start(ADMIN_SP, None), Err(3));
    // Its host is gone.
    let later = Instant::now() + Duration::from_secs(61);
    let args = [&[0x81, HSN as u8][..], &uid(ADMIN_SP), &[1]].concat();
    host.tper.send(1, 0x1000, &frame(0, 0, &method_call(0xFF, 0xFF02, &args)), later).expect("sent");
    let answer = host.tper.receive(1, 0x1000, 2048).expect("an answer");
    assert_eq!(result(&answer[56 + 19..answer.len()]).map(|results| results.len()), Ok(7));
}

#[test]
fn no_pin_and_long_pins() {
    let mut host = Host::new();
    let msid = host.msid();
    let long: Vec<u8> = (0..=254).collect();
    host.within(ADMIN_SP, Some((SID, &msid)), |host| {
        host.set(C_PIN_SID, &[(3, bytes(&long))]).expect("255 bytes");
        assert_eq!(host.set(C_PIN_SID, &[(3, bytes(&[1; 256]))]), Err(0x0C));
    });
    assert_eq!(host.start(ADMIN_SP, Some((SID, &long[..254]))), Err(1));
    host.within(ADMIN_SP, Some((SID, &long)), |host| host.set(C_PIN_SID, &[(3, bytes(b""))]))
        .expect("no PIN");
    host.within(ADMIN_SP, Some((SID, b"")), |_| ());
}

#[test]
fn a_pin_cannot_be_read() {
    let mut host = Host::new();
    let msid = host.msid();
    host.within(ADMIN_SP, Some((SID, &msid)), |host| {
        assert_eq!(host.get(C_PIN_SID, 3, 3), Ok(vec![0xF0, 0xF0, 0xF1, 0xF1]));
    });
}

#[test]
fn a_data_store_is_for_those_who_may_read_it() {
    const DATA_STORE: u64 = 0x0000_1001_0000_0000;
    let mut host = Host::new();
    host.own(b"admin");
    let cells = [0xF0, 0xF2, 1, 0, 0xF3, 0xF2, 2, 0, 0xF3, 0xF1];
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.call(DATA_STORE, SET, &[0xF2, 0, 0, 0xF3, 0xF2, 1, 0xA1, 9, 0xF3]).expect("written");
        assert_eq!(host.call(DATA_STORE, GET, &cells), Ok(vec![0xF0, 0xA1, 9, 0xF1]));
    });
    host.within(LOCKING_SP, None, |host| assert_eq!(host.call(DATA_STORE, GET, &cells), Err(1)));
}

#[test]
fn block_sid_lasts_until_a_power_cycle() {
    let mut host = Host::new();
    let msid = host.msid();
    host.tper.send(2, 5, &[0; 512], Instant::now()).expect("blocked");
    assert_eq!(host.start(ADMIN_SP, Some((SID, &msid))), Err(1));
    assert!(host.tper.is_sid_blocked());
    host.reset(block_opal::tper::Reset::PowerCycle);
    host.within(ADMIN_SP, Some((SID, &msid)), |host| host.set(C_PIN_SID, &[(3, bytes(b"x"))])).expect("set");
    assert_eq!(host.tper.send(2, 5, &[0; 512], Instant::now()), Err(SecurityError::InvalidField));
}

proptest! {
    /// Whatever is sent, the next host is served.
    #[test]
    fn any_stream_leaves_the_drive_usable(stream in prop::collection::vec(any::<u8>(), 0..400), framed: bool) {
        let mut host = Host::new();
        host.start(ADMIN_SP, None).expect("a session");
        let bytes = if framed { frame(host.tsn, HSN, &stream) } else { stream };
        host.raw(&bytes);
        host.reset(block_opal::tper::Reset::Controller { hardware: false });
        host.within(ADMIN_SP, None, |host| host.call(THIS_SP, RANDOM, &[1])).expect("served");
    }
}
