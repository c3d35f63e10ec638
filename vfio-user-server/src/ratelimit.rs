//! [`RateLimit`]: keeps what a guest or a client can provoke from filling the log.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Lines per window.
const BURST: u32 = 10;
/// Length of a window.
const WINDOW_MS: u64 = 10_000;

/// A budget of ten lines in ten seconds. One per place or per connection; may be `static`.
///
/// ```
/// # use vfio_user_server::ratelimit::RateLimit;
/// static LIMIT: RateLimit = RateLimit::new();
/// if let Some(suppressed) = LIMIT.check() {
///     tracing::warn!(suppressed, "the guest wrote nonsense");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimit {
    /// Start of the window, milliseconds since the first check of the process.
    window: AtomicU64,
    used: AtomicU32,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// A full budget.
    pub const fn new() -> Self {
        Self { window: AtomicU64::new(0), used: AtomicU32::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line may be written now; then also how many were not since the last one that was, if any
    /// (a field that is `None` does not show). Never blocks. Racing callers may get a line too many.
    pub fn check(&self) -> Option<Option<u64>> {
        static START: OnceLock<Instant> = OnceLock::new();
        let suppressed = self.check_at(START.get_or_init(Instant::now).elapsed().as_millis() as u64)?;
        Some((suppressed > 0).then_some(suppressed))
    }

    fn check_at(&self, now: u64) -> Option<u64> {
        if now.saturating_sub(self.window.load(Ordering::Relaxed)) >= WINDOW_MS {
            self.window.store(now, Ordering::Relaxed);
            self.used.store(0, Ordering::Relaxed);
        }
        if self.used.load(Ordering::Relaxed) >= BURST {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_then_silence_then_a_count() {
        let limit = RateLimit::new();
        assert!((0..10).all(|_| limit.check_at(5) == Some(0)));
        assert!((0..7).all(|_| limit.check_at(9_999).is_none()));
        assert_eq!(limit.check_at(10_000), Some(7));
        assert_eq!(limit.check_at(10_001), Some(0));
    }
}
