//! Commands that wait for their limits.

use super::Engine;

impl Engine {
    /// Limits of this controller or of a namespace changed: who waits may have to wait for another time.
    // PLACEHOLDER (issue 3): filled by the data path's half.
    pub(crate) fn limits_changed(&mut self) {}
}
