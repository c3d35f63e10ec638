//! What tools do with a drive.

use block_opal::tper::Reset;

use super::client::*;

const LOCKED: [(u8, u8); 4] = [(5, 1), (6, 1), (7, 1), (8, 1)];

fn columns(columns: &[(u8, u8)]) -> Vec<(u8, Vec<u8>)> {
    columns.iter().map(|(column, value)| (*column, vec![*value])).collect()
}

/// The drive as cryptsetup sets it up: range 1 from block 0x8000, 0x10000 blocks, that User2 locks and unlocks.
fn with_range(host: &mut Host, user_pin: &[u8]) {
    host.own(b"admin");
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.set(USER | 2, &columns(&[(5, 1)])).expect("enabled");
        let expression = |terms: &[u64]| {
            let mut value = vec![0xF0];
            for (at, term) in terms.iter().enumerate() {
                value.extend([&[0xF2, 0xA4, 0, 0, 0x0C, 5][..], &uid(*term), &[0xF3]].concat());
                if at > 0 {
                    value.extend([0xF2, 0xA4, 0, 0, 4, 0x0E, 1, 0xF3]);
                }
            }
            value.push(0xF1);
            vec![(3, value)]
        };
        host.set(ACE | 0x3_D001, &expression(&[ADMIN1, USER | 2])).expect("Get");
        host.set(ACE | 0x3_E001, &expression(&[USER | 2])).expect("read locks");
        host.set(ACE | 0x3_E801, &expression(&[USER | 2])).expect("write locks");
        host.set(C_PIN_USER | 2, &[(3, bytes(user_pin))]).expect("PIN");
        let place = [(3, vec![0x82, 0x80, 0]), (4, vec![0x83, 1, 0, 0])];
        host.set(RANGE | 1, &[&place[..], &columns(&[(5, 1), (6, 1)])].concat()).expect("set up");
    });
}

#[test]
fn a_range_is_locked_and_unlocked_by_its_user() {
    let pin: Vec<u8> = (0..32).collect();
    let mut host = Host::new();
    let before = host.block(0x9000);
    with_range(&mut host, &pin);
    let open = host.block(0x9000);
    assert_eq!((open.0, open.1), (false, false));
    assert_ne!(open.2, before.2, "the range has a key of its own");
    let user = (USER | 2, &pin[..]);
    host.within(LOCKING_SP, Some(user), |host| {
        host.set(RANGE | 1, &columns(&[(7, 1), (8, 1)])).expect("locked");
        let status = host.get(RANGE | 1, 3, 8).expect("readable");
        let expected = [0xF0, 0xF0, 0xF2, 3, 0x82, 0x80, 0, 0xF3, 0xF2, 4, 0x83, 1, 0, 0, 0xF3];
        assert_eq!(status[..15], expected);
        assert_eq!(
            status[15..],
            [0xF2, 5, 1, 0xF3, 0xF2, 6, 1, 0xF3, 0xF2, 7, 1, 0xF3, 0xF2, 8, 1, 0xF3, 0xF1, 0xF1]
        );
    });
    assert_eq!(host.block(0x9000), (true, true, None), "no key in memory");
    assert_eq!(host.block(0x7FFF), (false, false, before.2), "the global range stays");
    // A power cycle later, the user has the key again, and so has the administrator.
    let mut host = host.power_cycle();
    assert_eq!(host.block(0x9000), (true, true, None));
    assert_eq!(host.start(LOCKING_SP, Some((USER | 2, b"wrong"))), Err(1));
    host.within(LOCKING_SP, Some(user), |host| host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)])))
        .expect("unlocked");
    assert_eq!(host.block(0x9000), open);
    host.reset(Reset::PowerCycle);
    assert_eq!(host.block(0x9000), (true, true, None));
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)]))
    })
    .expect("unlocked");
    assert_eq!(host.block(0x9000), open);
}

#[test]
fn an_administrator_sets_a_lost_pin() {
    let mut host = Host::new();
    with_range(&mut host, b"lost");
    let open = host.block(0x9000);
    host.reset(Reset::PowerCycle);
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| host.set(C_PIN_USER | 2, &[(3, bytes(b"new"))]))
        .expect("set");
    assert_eq!(host.start(LOCKING_SP, Some((USER | 2, b"lost"))), Err(1));
    let user = Some((USER | 2, &b"new"[..]));
    host.within(LOCKING_SP, user, |host| host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)]))).expect("unlocked");
    assert_eq!(host.block(0x9000), open);
}

#[test]
fn a_new_key_is_for_a_locked_range_too() {
    let mut host = Host::new();
    with_range(&mut host, b"pin");
    let open = host.block(0x9000);
    host.reset(Reset::PowerCycle);
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        assert_eq!(host.call(RANGE | 1, ERASE, &[]), Err(1), "no Single User Mode");
        host.call(KEY | 1, GEN_KEY, &[]).expect("new key");
    });
    assert_eq!(host.block(0x9000), (true, true, None));
    let user = Some((USER | 2, &b"pin"[..]));
    host.within(LOCKING_SP, user, |host| host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)]))).expect("unlocked");
    assert_ne!(host.block(0x9000).2, open.2);
}

#[test]
fn reverts_give_the_drive_back() {
    let mut host = Host::new();
    let factory = host.block(0).2;
    with_range(&mut host, b"pin");
    assert_eq!(host.block(0).2, factory, "activation loses nothing");
    // RevertSP that keeps the global range's key.
    host.start(LOCKING_SP, Some((ADMIN1, b"admin"))).expect("a session");
    host.call(THIS_SP, REVERT_SP, &[0xF2, 0x83, 6, 0, 0, 1, 0xF3]).expect("reverted");
    assert_eq!(host.tper.sessions(), 0);
    assert_eq!((host.block(0).2, host.block(0x9000).2), (factory, factory));
    assert_eq!(host.start(LOCKING_SP, None), Err(0x0C), "it is not active");
    // Revert by the SID while the Locking SP is not active keeps the data.
    host.start(ADMIN_SP, Some((SID, b"admin"))).expect("a session");
    host.call(ADMIN_SP, REVERT, &[]).expect("reverted");
    assert_eq!((host.block(0).2, host.tper.sessions()), (factory, 0));
    // By the PSID while it is active: all is new.
    host.own(b"other");
    let psid = host.tper.psid().expect("there").as_bytes().to_vec();
    assert_eq!(host.start(ADMIN_SP, Some((PSID, b"wrong"))), Err(1));
    host.start(ADMIN_SP, Some((PSID, &psid))).expect("a session");
    host.call(ADMIN_SP, REVERT, &[]).expect("reverted");
    assert_ne!(host.block(0).2, factory);
    let msid = host.msid();
    host.within(ADMIN_SP, Some((SID, &msid)), |_| ());
}

#[test]
fn a_revert_of_nothing_loses_nothing_and_none_is_taken_back() {
    let mut host = Host::new();
    let (factory, msid) = (host.block(0).2, host.msid());
    host.within(ADMIN_SP, Some((SID, &msid)), |host| host.call(LOCKING_SP, REVERT, &[]))
        .expect("nothing to do");
    assert_eq!(host.block(0).2, factory);
    host.own(b"admin");
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.exchange(host.tsn, HSN, &[0xFB, 0]);
        assert_eq!(host.call(THIS_SP, REVERT_SP, &[]), Err(0x3F), "in a transaction");
    });
    assert!(host.tper.state().locking.active);
}

#[test]
fn the_shadow_shows_what_was_loaded() {
    let mut host = Host::new();
    host.own(b"admin");
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.set(MBR_CONTROL, &columns(&[(2, 1)])).expect("done");
        host.set(MBR_CONTROL, &columns(&[(1, 1)])).expect("enabled");
        let image =
            [&[0xF2, 0, 0x82, 2, 0, 0xF3, 0xF2, 1, 0xE2, 0, 4, 0][..], &[0x5A; 1024], &[0xF3]].concat();
        host.call(MBR, SET, &image).expect("loaded");
        let read =
            host.call(MBR, GET, &[0xF0, 0xF2, 1, 0x82, 5, 0xFE, 0xF3, 0xF2, 2, 0x82, 6, 1, 0xF3, 0xF1]);
        assert_eq!(read.expect("bytes"), [0xF0, 0xA4, 0x5A, 0x5A, 0, 0, 0xF1]);
        // Linux reads so much that the answer has 2048 bytes: more does not fit.
        let read = host.call(MBR, GET, &[0xF0, 0xF2, 1, 0, 0xF3, 0xF2, 2, 0x82, 7, 0xBD, 0xF3, 0xF1]);
        assert_eq!(read.expect("bytes").len(), 2 + 2 + 0x7BE);
        let read = host.call(MBR, GET, &[0xF0, 0xF2, 1, 0, 0xF3, 0xF2, 2, 0x82, 8, 0, 0xF3, 0xF1]);
        assert_eq!(read, Err(0x11));
    });
    assert!(host.tper.map().shadow.is_none());
    host.reset(Reset::PowerCycle);
    assert!(host.tper.map().shadow.is_some());
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| host.set(MBR_CONTROL, &columns(&[(2, 1)])))
        .expect("done");
    assert!(host.tper.map().shadow.is_none());
    // A revert wipes it.
    host.start(LOCKING_SP, Some((ADMIN1, b"admin"))).expect("a session");
    host.call(THIS_SP, REVERT_SP, &[]).expect("reverted");
    assert!(host.memory.0.borrow().tables.is_empty());
}

#[test]
fn a_single_user_is_alone() {
    let mut host = Host::new();
    let msid = host.msid();
    host.within(ADMIN_SP, Some((SID, &msid)), |host| {
        host.set(C_PIN_SID, &[(3, bytes(b"admin"))]).expect("PIN set");
        let ranges = [&[0xF2, 0x83, 6, 0, 0, 0xF0][..], &uid(RANGE | 1), &[0xF1, 0xF3]].concat();
        host.call(LOCKING_SP, ACTIVATE, &ranges).expect("activated");
    });
    let user = |pin: &'static [u8]| Some((USER | 2, pin));
    host.within(LOCKING_SP, user(b""), |host| {
        host.set(C_PIN_USER | 2, &[(3, bytes(b"mine"))]).expect("PIN");
        let place = [(3, vec![0]), (4, vec![0x82, 1, 0])];
        host.set(RANGE | 1, &[&place[..], &columns(&LOCKED)].concat()).expect("set up");
    });
    let open = host.block(0);
    assert_eq!(open, (true, true, None));
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        assert_eq!(host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)])), Err(1));
        assert_eq!(host.set(C_PIN_USER | 2, &[(3, bytes(b"x"))]), Err(1));
        assert_eq!(host.set(USER | 2, &columns(&[(5, 0)])), Err(1));
        assert_eq!(host.call(KEY | 1, GEN_KEY, &[]), Err(1));
        host.get(RANGE | 1, 3, 8).expect("readable");
    });
    host.within(LOCKING_SP, user(b"mine"), |host| host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)])))
        .expect("unlocked");
    let key = host.block(0).2;
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| host.call(RANGE | 1, ERASE, &[]))
        .expect("erased");
    assert_ne!(host.block(0).2, key);
    host.within(LOCKING_SP, user(b""), |_| ());
}

#[test]
fn tries_are_counted_before_they_are_answered() {
    let mut host = Host::new();
    host.own(b"admin");
    for _ in 0..5 {
        let steps = host.memory.0.borrow().steps;
        assert_eq!(host.start(ADMIN_SP, Some((SID, b"wrong"))), Err(1));
        assert_eq!(host.memory.0.borrow().steps, steps + 1);
    }
    assert_eq!(host.start(ADMIN_SP, Some((SID, b"admin"))), Err(0x12), "locked out");
    let mut host = host.power_cycle();
    host.within(ADMIN_SP, Some((SID, b"admin")), |_| ());
}

#[test]
fn a_second_authority_comes_into_a_session() {
    let mut host = Host::new();
    host.own(b"admin");
    host.within(LOCKING_SP, None, |host| {
        assert_eq!(host.set(GLOBAL, &columns(&[(5, 1)])), Err(1));
        let with = |pin: &[u8]| [&uid(ADMIN1)[..], &[0xF2, 0], &bytes(pin), &[0xF3]].concat();
        assert_eq!(host.call(THIS_SP, AUTHENTICATE, &with(b"wrong")), Ok(vec![0xF0, 0, 0xF1]));
        assert_eq!(host.set(GLOBAL, &columns(&[(5, 1)])), Err(1));
        assert_eq!(host.call(THIS_SP, AUTHENTICATE, &with(b"admin")), Ok(vec![0xF0, 1, 0xF1]));
        host.set(GLOBAL, &columns(&[(5, 1)])).expect("set");
        assert_eq!(host.call(THIS_SP, RANDOM, &[32]).expect("bytes").len(), 2 + 2 + 32);
        assert_eq!(host.call(THIS_SP, RANDOM, &[33]), Err(0x0C));
        let rows = host.call(0x0000_0802_0000_0000, NEXT, &[]).expect("rows");
        assert_eq!(rows.len(), 4 + 17 * 9);
    });
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let mut host = Host::new();
    host.own(b"admin");
    for (last, enabled) in [(1, 0), (0, 1)] {
        host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
            assert_eq!(host.exchange(host.tsn, HSN, &[0xFB, 0]), [0xFB, 0]);
            host.set(GLOBAL, &columns(&[(5, 1), (7, 1)])).expect("set");
            assert_eq!(host.get(GLOBAL, 5, 5).expect("seen")[4], 1);
            assert!(!host.block(0).0, "not yet in force");
            assert_eq!(host.exchange(host.tsn, HSN, &[0xFC, last]), [0xFC, 0]);
            assert_eq!(host.get(GLOBAL, 5, 5).expect("seen")[4], enabled);
        });
        assert_eq!(host.block(0).0, enabled == 1);
    }
    // What is open when the session ends is taken back.
    host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
        host.exchange(host.tsn, HSN, &[0xFB, 0]);
        host.set(GLOBAL, &columns(&[(7, 0)])).expect("set");
    });
    assert!(host.block(0).0);
}

/// Every persisted step: what is kept is the old or the new state, and both start.
#[test]
fn a_server_killed_anywhere_has_the_old_or_the_new_state() {
    type Act = fn(&mut Host);
    let acts: [(&str, Act); 4] = [
        ("Set PIN", |host| {
            let _ = host.start(LOCKING_SP, Some((ADMIN1, b"admin")));
            let _ = host.set(C_PIN_USER | 2, &[(3, bytes(b"new"))]);
        }),
        ("GenKey", |host| {
            let _ = host.start(LOCKING_SP, Some((ADMIN1, b"admin")));
            let _ = host.call(KEY | 1, GEN_KEY, &[]);
        }),
        ("Revert", |host| {
            let _ = host.start(ADMIN_SP, Some((SID, b"admin")));
            let _ = host.call(ADMIN_SP, REVERT, &[]);
        }),
        ("RevertSP", |host| {
            let _ = host.start(LOCKING_SP, Some((ADMIN1, b"admin")));
            let _ = host.call(THIS_SP, REVERT_SP, &[]);
        }),
    ];
    for (name, act) in acts {
        for dies_at in 0..4 {
            let mut host = Host::new();
            with_range(&mut host, b"pin");
            host.within(LOCKING_SP, Some((ADMIN1, b"admin")), |host| {
                host.call(MBR, SET, &[0xF2, 0, 0, 0xF3, 0xF2, 1, 0xA1, 9, 0xF3]).expect("written");
            });
            {
                let mut kept = host.memory.0.borrow_mut();
                kept.dies_at = Some(kept.steps + dies_at);
            }
            act(&mut host);
            let mut host = host.power_cycle();
            let is_active = host.tper.state().locking.active;
            if is_active {
                let pin: &[u8] =
                    if host.start(LOCKING_SP, Some((USER | 2, b"pin"))).is_ok() { b"pin" } else { b"new" };
                if pin == b"new" {
                    assert_eq!(name, "Set PIN");
                    host.start(LOCKING_SP, Some((USER | 2, b"new"))).expect("the new PIN");
                }
                host.set(RANGE | 1, &columns(&[(7, 0), (8, 0)])).expect("unlocks");
                assert!(host.block(0x9000).2.is_some());
            } else {
                assert!(name.starts_with("Revert"), "{name}");
                assert!(host.memory.0.borrow().tables.is_empty(), "{name} finishes what it began");
                assert_eq!((host.block(0).0, host.block(0x9000).0), (false, false));
            }
        }
    }
}
