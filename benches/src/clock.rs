//! The cheapest clock there is: the time stamp counter, whose rate is found once.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ticks since some moment. About 10 ns.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has the instruction; that user space may use it is what Linux does since ever.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// Ticks in a nanosecond, measured against the system's clock at the first call (50 ms).
pub fn rate() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let (start, first) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(50));
        let (elapsed, last) = (start.elapsed(), ticks());
        last.wrapping_sub(first) as f64 / elapsed.as_nanos() as f64
    })
}

/// Ticks in `duration`.
pub fn ticks_in(duration: Duration) -> u64 {
    (duration.as_nanos() as f64 * rate()) as u64
}

/// Nanoseconds in `ticks`.
pub fn nanoseconds(ticks: u64) -> f64 {
    ticks as f64 / rate()
}
