//! Rates and debts, in a time that the tests make themselves.

use std::sync::Barrier;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

/// Starts `commands` as early as they may. Returns the time of the last one.
fn saturate(limiter: &Limiter, mut now: u64, write: bool, bytes: u64, commands: u64) -> u64 {
    for _ in 0..commands {
        while limiter.earliest(write, now) > now {
            now = limiter.earliest(write, now);
        }
        limiter.charge(write, bytes, now);
    }
    now
}

/// Uses up the burst, then tells how many units a second come through, over `commands`.
fn long_run(limiter: &Limiter, start: u64, write: bool, bytes: u64, commands: u64) -> (u64, f64) {
    let mut now = start;
    while limiter.earliest(write, now) <= now {
        limiter.charge(write, bytes, now);
    }
    let from = now;
    now = saturate(limiter, now, write, bytes, commands);
    (now, commands as f64 * SECOND as f64 / (now - from) as f64)
}

#[test]
fn no_limits_hold_nobody_up() {
    let limiter = Limiter::new(Limits::default());
    assert!(!limiter.is_limited());
    for _ in 0..1000 {
        limiter.charge(true, u64::MAX, 5);
        assert_eq!(limiter.earliest(true, 5), 0);
    }
}

#[test]
fn a_burst_then_the_rate() {
    let limiter = Limiter::new(limits(|l| (l.iops, l.burst) = (Some(1000), Duration::from_millis(10))));
    assert!(limiter.is_limited());
    let now = 77 * SECOND;
    let mut started = 0;
    while limiter.earliest(false, now) <= now {
        limiter.charge(false, 512, now);
        started += 1;
    }
    // Ten milliseconds' worth, and the one that goes into debt.
    assert_eq!(started, 11);
    assert_eq!(limiter.earliest(false, now), now + SECOND / 1000);
    // A pause longer than the burst gives no more than the burst.
    let later = now + SECOND;
    assert_eq!(std::iter::repeat_with(|| limiter.charge(false, 512, later)).take(11).count(), 11);
    assert_eq!(limiter.earliest(false, later), later + SECOND / 1000);
}

#[test]
fn what_is_larger_than_the_bucket_passes_and_is_paid_afterwards() {
    let limiter =
        Limiter::new(limits(|l| (l.bandwidth, l.burst) = (Some(1 << 20), Duration::from_millis(1))));
    limiter.charge(true, 4 << 20, SECOND);
    assert_eq!(limiter.earliest(true, SECOND), 5 * SECOND - SECOND / 1000);
    assert_eq!(limiter.earliest(false, SECOND), 5 * SECOND - SECOND / 1000);
}

#[test]
fn reads_and_writes_are_apart() {
    let limiter = Limiter::new(limits(|l| (l.read_iops, l.write_bandwidth) = (Some(10), Some(1000))));
    let now = SECOND;
    for _ in 0..2 {
        limiter.charge(false, 1 << 20, now);
    }
    assert!(limiter.earliest(false, now) > now, "two tenths of a second are owed");
    assert!(limiter.earliest(true, now) <= now, "by reads alone");
    limiter.charge(true, 1000, now);
    assert_eq!(limiter.earliest(true, now), now + 900_000_000);
}

#[test]
fn the_tightest_limit_decides() {
    for (iops, read_iops, bandwidth, expected) in [
        (1000, 500, 1 << 30, 500.0),
        (1000, 5000, 1 << 30, 1000.0),
        (1000, 5000, 4096 * 100, 100.0),
        (u64::MAX, u64::MAX, 4096 * 7, 7.0),
    ] {
        let limiter = Limiter::new(limits(|l| {
            (l.iops, l.read_iops, l.bandwidth) = (Some(iops), Some(read_iops), Some(bandwidth));
        }));
        let (_, rate) = long_run(&limiter, 0, false, 4096, 5000);
        assert!((rate / expected - 1.0).abs() < 0.001, "{rate} instead of {expected}");
    }
}

/// Reads and writes one after the other share the total.
#[test]
fn totals_hold_for_both() {
    let limiter = Limiter::new(limits(|l| (l.iops, l.write_iops) = (Some(1000), Some(400))));
    let (mut now, mut reads, mut writes) = (0, 0, 0);
    while now < 10 * SECOND {
        for (write, count) in [(true, &mut writes), (false, &mut reads)] {
            if limiter.earliest(write, now) <= now {
                limiter.charge(write, 512, now);
                *count += 1;
            }
        }
        now += SECOND / 10_000;
    }
    assert!((10_000..=10_102).contains(&(reads + writes)), "{reads} + {writes}");
    assert!((3990..=4042).contains(&writes), "{writes}");
}

#[test]
fn limits_change_while_running() {
    let limiter = Limiter::new(limits(|l| l.iops = Some(1000)));
    let (now, _) = long_run(&limiter, SECOND, false, 512, 1000);
    let faster = limits(|l| l.iops = Some(1_000_000));
    limiter.set(faster.clone());
    assert_eq!(limiter.limits(), faster);
    let (now, rate) = long_run(&limiter, now, false, 512, 1_000_000);
    assert!((rate / 1e6 - 1.0).abs() < 0.001, "{rate}");
    limiter.set(Limits::default());
    assert!(!limiter.is_limited() && limiter.earliest(false, now) <= now);
    limiter.set(limits(|l| l.iops = Some(10)));
    let (_, rate) = long_run(&limiter, now, false, 512, 10_000);
    assert!((rate / 10.0 - 1.0).abs() < 0.001, "{rate}");
}

/// Setting what is set already gives no new burst.
#[test]
fn setting_the_same_changes_nothing() {
    let same = limits(|l| l.iops = Some(1000));
    let limiter = Limiter::new(same.clone());
    let now = saturate(&limiter, SECOND, false, 512, 500);
    let before = limiter.earliest(false, now);
    limiter.set(same);
    assert_eq!(limiter.earliest(false, now), before);
}

#[test]
fn an_old_debt_ends_soon_after_a_change() {
    let limiter = Limiter::new(limits(|l| l.bandwidth = Some(1)));
    let now = SECOND;
    limiter.charge(true, 1 << 30, now);
    assert!(limiter.earliest(true, now) > now + 34 * 365 * 86_400 * SECOND);
    for rate in [100 << 20, 1000] {
        limiter.set(limits(|l| l.bandwidth = Some(rate)));
        let at = limiter.earliest(true, now);
        assert!(at <= now + SECOND, "{at}");
        assert!(limiter.earliest(true, at) <= at, "and it is the end of it");
    }
}

/// What was taken within a long burst holds nobody up for as long when the burst is made short.
#[test]
fn a_shorter_burst_forgives() {
    let long = |seconds| limits(|l| (l.iops, l.burst) = (Some(1000), Duration::from_secs(seconds)));
    let limiter = Limiter::new(long(60));
    let now = saturate(&limiter, SECOND, false, 512, 60_000);
    limiter.set(long(1));
    let at = limiter.earliest(false, now);
    assert!(now < at && at <= now + SECOND, "{now} {at}");
}

#[test]
fn no_number_is_too_large() {
    for rate in [0, 1, u64::MAX] {
        let all = Limits {
            iops: Some(rate),
            read_iops: Some(rate),
            write_iops: Some(rate),
            bandwidth: Some(rate),
            read_bandwidth: Some(rate),
            write_bandwidth: Some(rate),
            burst: Duration::MAX,
        };
        let limiter = Limiter::new(all);
        for now in [0, u64::MAX / 2, u64::MAX] {
            for bytes in [0, 1, u64::MAX] {
                limiter.charge(true, bytes, now);
                let _ = limiter.earliest(true, now);
            }
        }
    }
}

/// Threads may overtake each other by one command each, no more; and no command is lost.
#[test]
fn threads_share_a_limiter() {
    const THREADS: u64 = 4;
    const EACH: u64 = 20_000;
    let limiter = Limiter::new(limits(|l| (l.iops, l.bandwidth) = (Some(1_000_000), Some(1 << 40))));
    let barrier = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                saturate(&limiter, SECOND, false, 512, EACH);
            });
        }
    });
    // All of them are owed since the second at which they began: a microsecond each.
    let owed = limiter.earliest(false, 0) + 100_000_000;
    assert_eq!(owed, SECOND + THREADS * EACH * 1000);
    // Nobody could start with more than the burst owed, but for one command of each thread.
    let burst = Limiter::new(limits(|l| (l.iops, l.burst) = (Some(1000), Duration::from_millis(50))));
    let started = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                while burst.earliest(true, SECOND) <= SECOND {
                    burst.charge(true, 512, SECOND);
                    started.fetch_add(1, Relaxed);
                }
            });
        }
    });
    let started = started.into_inner();
    assert!((51..=50 + THREADS).contains(&started), "{started}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_rate_of_commands_is_exact(rate in 1..10_000_000u64, burst in 1..200u64, years in 0..100u64) {
        let limiter = Limiter::new(limits(|l| {
            (l.iops, l.burst) = (Some(rate), Duration::from_millis(burst));
        }));
        let start = years * 365 * 86_400 * SECOND;
        let (_, found) = long_run(&limiter, start, true, 512, 50_000);
        prop_assert!((found / rate as f64 - 1.0).abs() < 0.001, "{} instead of {}", found, rate);
    }

    #[test]
    fn the_rate_of_bytes_is_exact(
        rate in (16u32..37).prop_flat_map(|bits| (1u64 << bits)..(1u64 << (bits + 1))),
        bytes in (9u32..21).prop_map(|bits| 1u64 << bits),
        years in 0..100u64,
    ) {
        let limiter = Limiter::new(limits(|l| l.write_bandwidth = Some(rate)));
        let (_, found) = long_run(&limiter, years * 365 * 86_400 * SECOND, true, bytes, 50_000);
        let found = found * bytes as f64;
        prop_assert!((found / rate as f64 - 1.0).abs() < 0.001, "{} instead of {}", found, rate);
    }

    /// Whenever callers come, and whatever they start: no more than the rate and the burst, plus one command.
    #[test]
    fn never_more_than_the_rate_and_the_burst(
        rate in 1000..1_000_000u64,
        steps in proptest::collection::vec((0..5_000_000u64, 1..200u64), 1..200),
    ) {
        let limiter = Limiter::new(limits(|l| l.iops = Some(rate)));
        let (start, mut now, mut started) = (SECOND, SECOND, 0u64);
        for (pause, wanted) in steps {
            now += pause;
            for _ in 0..wanted {
                if limiter.earliest(false, now) <= now {
                    limiter.charge(false, 0, now);
                    started += 1;
                }
            }
            let most = (now - start) as f64 * rate as f64 / 1e9 + rate as f64 / 10.0 + 1.0;
            prop_assert!(started as f64 <= most * 1.0001 + 1.0, "{} of {}", started, most);
        }
    }
}
