//! When service came back after a fault.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// For each fault the first acknowledgement of an operation that was first sent after it.
#[derive(Debug)]
pub struct FaultWatch {
    faults: Vec<Fault>,
    /// How many have happened and wait for an acknowledgement: none most of the time.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Fault {
    at_ns: AtomicU64,
    acked_ns: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

impl FaultWatch {
    /// Watches so many faults.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let fault = || Fault {
            at_ns: AtomicU64::new(NOT_YET),
            acked_ns: AtomicU64::new(NOT_YET),
        };
        Self {
            faults: (0..count).map(|_| fault()).collect(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// A fault has happened.
    pub fn happened(&self, number: usize, at_ns: u64) {
        self.faults[number].at_ns.store(at_ns, Ordering::Release);
        self.waiting.fetch_add(1, Ordering::Release);
    }

    /// An operation that was first sent at `sent_ns` was acknowledged.
    pub fn on_acked(&self, sent_ns: u64, at_ns: u64) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        for fault in &self.faults {
            let fault_ns = fault.at_ns.load(Ordering::Acquire);
            if fault_ns == NOT_YET || sent_ns <= fault_ns {
                continue;
            }
            if fault.acked_ns.fetch_min(at_ns, Ordering::AcqRel) == NOT_YET {
                self.waiting.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// How long nothing that was sent after a fault was acknowledged; `None`: nothing ever was.
    #[must_use]
    pub fn unavailable_ns(&self, number: usize) -> Option<u64> {
        let fault = &self.faults[number];
        let (at_ns, acked_ns) = (
            fault.at_ns.load(Ordering::Acquire),
            fault.acked_ns.load(Ordering::Acquire),
        );
        (at_ns != NOT_YET && acked_ns != NOT_YET).then(|| acked_ns.saturating_sub(at_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_after_a_fault_ends_it() {
        let watch = FaultWatch::new(2);
        watch.on_acked(5, 6);
        watch.happened(0, 10);
        watch.on_acked(9, 12);
        assert_eq!(watch.unavailable_ns(0), None);
        watch.on_acked(11, 15);
        watch.on_acked(11, 14);
        watch.on_acked(20, 25);
        assert_eq!(watch.unavailable_ns(0), Some(5));
        assert_eq!(watch.unavailable_ns(1), None);
        watch.happened(1, 30);
        watch.on_acked(31, 38);
        assert_eq!(
            (watch.unavailable_ns(0), watch.unavailable_ns(1)),
            (Some(5), Some(8))
        );
    }
}
