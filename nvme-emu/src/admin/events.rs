//! Asynchronous events (Base 5.2): requests that the host left here, and events that wait for one.

use std::collections::{BTreeSet, VecDeque};

use nvme_spec::event::{AsyncEvent, EventType};
use nvme_spec::log::LogPageId;
use nvme_spec::status::Status;

/// Requests that may be outstanding: AERL + 1.
pub(crate) const REQUESTS: usize = 4;

/// Namespaces that the Changed Attached Namespace List can name (Base 5.16.1.5).
const CHANGED: usize = 1024;

/// Bit 8 of feature 0Bh: namespace attribute notices.
const NAMESPACE_NOTICES: u32 = 1 << 8;

/// The events of an enabled controller.
#[derive(Default)]
pub(crate) struct Events {
    requests: VecDeque<u16>,
    /// Events not yet reported, each kind once.
    pending: VecDeque<AsyncEvent>,
    /// Event types that were reported and whose log page was not read since.
    masked: Vec<EventType>,
    /// Feature 0Bh.
    pub(super) enabled: u32,
    changed: BTreeSet<u32>,
    aborted: Vec<u16>,
}

impl Events {
    /// Takes an Asynchronous Event Request.
    pub(super) fn request(&mut self, cid: u16) -> Result<(), Status> {
        if self.requests.len() == REQUESTS {
            return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED);
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// Aborts a request. Returns whether there was one.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let at = self.requests.iter().position(|request| *request == cid);
        if let Some(cid) = at.and_then(|at| self.requests.remove(at)) {
            self.aborted.push(cid);
        }
        at.is_some()
    }

    /// An event occurred.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }

    /// A namespace came, went or changed: kept for the log page even if the host wants no notice, and told as soon as it
    /// wants some.
    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        if self.changed.len() <= CHANGED {
            self.changed.insert(nsid);
        }
        self.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
    }

    /// Whether the host is told of a pending event now.
    fn is_due(&self, event: AsyncEvent) -> bool {
        let is_wanted =
            event != AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED || self.enabled & NAMESPACE_NOTICES != 0;
        is_wanted && !self.masked.contains(&event.kind())
    }

    /// Whether [`Self::next`] has something.
    pub(crate) fn has_next(&self) -> bool {
        !self.aborted.is_empty()
            || (!self.requests.is_empty() && self.pending.iter().any(|event| self.is_due(*event)))
    }

    /// The next request to complete: identifier, status, dword 0.
    pub(crate) fn next(&mut self) -> Option<(u16, Status, u32)> {
        if let Some(cid) = self.aborted.pop() {
            return Some((cid, Status::COMMAND_ABORT_REQUESTED, 0));
        }
        if self.requests.is_empty() {
            return None;
        }
        let at = self.pending.iter().position(|event| self.is_due(*event))?;
        let event = self.pending.remove(at)?;
        let cid = self.requests.pop_front()?;
        self.masked.push(event.kind());
        Some((cid, Status::SUCCESS, event.into_bits()))
    }

    /// The host read a log page without RAE: events of the type it belongs to are reported again.
    pub(super) fn log_page_read(&mut self, page: LogPageId) {
        let kind = match page {
            LogPageId::ERROR_INFORMATION => EventType::ERROR,
            LogPageId::SMART_HEALTH => EventType::SMART_HEALTH,
            LogPageId::CHANGED_NAMESPACE_LIST => EventType::NOTICE,
            _ => return,
        };
        self.masked.retain(|masked| *masked != kind);
        if page == LogPageId::CHANGED_NAMESPACE_LIST {
            // Whatever changed until now the host has just read.
            self.changed.clear();
            self.pending.retain(|event| *event != AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
        }
    }

    /// The Changed Attached Namespace List: identifiers in order, or FFFFFFFFh when there are too many.
    pub(super) fn changed_namespaces(&self) -> Vec<u32> {
        if self.changed.len() > CHANGED { vec![u32::MAX] } else { self.changed.iter().copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_waits_for_a_request_and_masks_its_type() {
        let mut events = Events::default();
        events.raise(AsyncEvent::INVALID_DOORBELL_WRITE_VALUE);
        events.raise(AsyncEvent::INVALID_DOORBELL_WRITE_VALUE);
        assert_eq!(events.next(), None);
        events.request(7).unwrap();
        events.request(8).unwrap();
        assert_eq!(events.next().map(|(cid, ..)| cid), Some(7));
        events.raise(AsyncEvent::WRITE_TO_INVALID_DOORBELL_REGISTER);
        assert_eq!(events.next(), None, "masked until the log page is read");
        events.log_page_read(LogPageId::ERROR_INFORMATION);
        assert_eq!(events.next().map(|(cid, ..)| cid), Some(8));
    }

    #[test]
    fn each_namespace_change_is_in_the_log_or_told_by_an_event() {
        let mut events = Events { enabled: NAMESPACE_NOTICES, ..Events::default() };
        (1..=3).for_each(|cid| events.request(cid).unwrap());
        events.namespace_changed(1);
        assert!(events.next().is_some());
        events.namespace_changed(2);
        assert_eq!(events.next(), None, "masked until the log page is read");
        assert_eq!(events.changed_namespaces(), [1, 2]);
        events.log_page_read(LogPageId::CHANGED_NAMESPACE_LIST);
        assert_eq!(events.next(), None, "the host has read of both");
        assert!(events.changed_namespaces().is_empty());
        events.namespace_changed(2);
        assert!(events.next().is_some());
        assert_eq!(events.changed_namespaces(), [2]);
    }

    #[test]
    fn a_change_before_notices_are_wanted_is_told_when_they_are() {
        let mut events = Events::default();
        events.namespace_changed(1);
        events.request(1).unwrap();
        assert!(!events.has_next() && events.next().is_none());
        events.enabled = NAMESPACE_NOTICES;
        assert!(events.has_next() && events.next().is_some());

        // Who has read the log needs no event.
        let mut events = Events::default();
        events.namespace_changed(1);
        events.log_page_read(LogPageId::CHANGED_NAMESPACE_LIST);
        events.enabled = NAMESPACE_NOTICES;
        events.request(1).unwrap();
        assert!(!events.has_next());
    }

    #[test]
    fn requests_are_limited_and_can_be_aborted() {
        let mut events = Events::default();
        for cid in 0..REQUESTS as u16 {
            events.request(cid).unwrap();
        }
        assert!(events.request(99).is_err());
        assert!(events.abort(2));
        assert!(!events.abort(2));
        assert_eq!(events.next(), Some((2, Status::COMMAND_ABORT_REQUESTED, 0)));
    }

    #[test]
    fn too_many_changes_say_all() {
        let mut events = Events::default();
        (1..=2000).for_each(|nsid| events.namespace_changed(nsid));
        assert_eq!(events.changed_namespaces(), [u32::MAX]);
    }
}
