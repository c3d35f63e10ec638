//! The Error Information log page's entries (Base 5.16.1.2).

use std::collections::VecDeque;

use nvme_spec::log::ErrorInformationEntry;
use nvme_spec::status::Status;

/// Entries that are kept: ELPE + 1.
pub(crate) const ENTRIES: usize = 64;

/// The newest errors of one controller, and how many there were in its life.
#[derive(Default)]
pub(crate) struct ErrorLog {
    entries: VecDeque<ErrorInformationEntry>,
    count: u64,
}

/// Whose error it is.
pub(crate) struct Failure {
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) lba: u64,
    pub(crate) nsid: u32,
}

impl ErrorLog {
    /// Adds an entry; the oldest one leaves.
    pub(crate) fn push(&mut self, failure: &Failure) {
        self.count += 1;
        if self.entries.len() == ENTRIES {
            self.entries.pop_back();
        }
        self.entries.push_front(ErrorInformationEntry {
            error_count: self.count.into(),
            sqid: failure.sqid.into(),
            cid: failure.cid.into(),
            status: nvme_spec::command::CompletionStatus::new().with_status(failure.status),
            lba: failure.lba.into(),
            nsid: failure.nsid.into(),
            ..Default::default()
        });
    }

    /// Errors since the controller was made.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Newest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &ErrorInformationEntry> {
        self.entries.iter()
    }
}
