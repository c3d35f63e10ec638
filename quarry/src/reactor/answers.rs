//! [`Answers`]: whether guests are about to send commands in answer to what other threads have just completed for them.
//!
//! A reactor that sleeps at once does not hear them until the next completion. That is little to lose where completions come
//! soon, or most of a guest's commands are under way still; large writes to a cluster complete many at a time and milliseconds
//! apart.

use std::time::Duration;

/// Where completions come in such intervals, a command that nobody hears until the next one loses little by that.
const SOON: Duration = Duration::from_micros(250);
/// What busy guests have under way as a rule is the most of so many idle times, up to twice as many.
pub(super) const LATELY: u32 = 32;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Until the next completion of what other threads do, about.
    interval: Duration,
    /// Commands that guests have under way as a rule, when the reactor waits for them.
    usual: usize,
    /// The most since that was found out, and idle times since then.
    most: usize,
    lately: u32,
}

impl Answers {
    /// A completion ended an idle time that had lasted so long.
    pub(super) fn learn(&mut self, lasted: Duration) {
        self.interval = (self.interval * 7 + lasted) / 8;
    }

    /// In an idle time so many commands are under way.
    pub(super) fn get_used_to(&mut self, under_way: usize) {
        self.most = self.most.max(under_way);
        self.usual = self.usual.max(under_way);
        self.lately += 1;
        if self.lately == LATELY {
            self.usual = std::mem::take(&mut self.most);
            self.lately = 0;
        }
    }

    /// Whether, with so many commands under way, so many more are likely that it matters if they are not heard.
    pub(super) fn are_likely(&self, under_way: usize) -> bool {
        under_way <= self.usual - self.usual.div_ceil(4) && self.interval > SOON
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_what_is_usual_matters_if_completions_are_rare() {
        let mut answers = Answers::default();
        assert!(!answers.are_likely(0));
        answers.get_used_to(8);
        (0..64).for_each(|_| answers.learn(SOON));
        assert!(!answers.are_likely(0));
        (0..64).for_each(|_| answers.learn(2 * SOON));
        assert_eq!([0, 6, 7, 8].map(|under_way| answers.are_likely(under_way)), [true, true, false, false]);
        (0..2 * LATELY).for_each(|_| answers.get_used_to(1));
        assert!(!answers.are_likely(1), "it is used to one");
    }
}
