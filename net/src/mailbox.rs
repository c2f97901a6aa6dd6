//! Events from network tasks to the one task that takes them out, on the same thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::Waker;

use tokio::sync::Notify;

/// Events that wait to be taken out. Whoever puts them in keeps to a bound of its own.
#[derive(Debug)]
pub(crate) struct Mailbox<E> {
    events: RefCell<VecDeque<E>>,
    ready: Notify,
    waker: RefCell<Option<Waker>>,
}

impl<E> Mailbox<E> {
    pub(crate) fn new() -> Self {
        Self {
            events: RefCell::default(),
            ready: Notify::new(),
            waker: RefCell::default(),
        }
    }

    /// Puts an event in. Wakes the taker only if there was none: it takes out all at once.
    pub(crate) fn push(&self, event: E) {
        let mut events = self.events.borrow_mut();
        let was_empty = events.is_empty();
        events.push_back(event);
        drop(events);
        if !was_empty {
            return;
        }
        self.ready.notify_one();
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Takes out everything.
    pub(crate) fn take(&self, out: &mut Vec<E>) {
        out.extend(self.events.borrow_mut().drain(..));
    }

    pub(crate) fn set_waker(&self, waker: Waker) {
        if !self.events.borrow().is_empty() {
            waker.wake_by_ref();
        }
        *self.waker.borrow_mut() = Some(waker);
    }

    /// Waits until there is something to take out.
    pub(crate) async fn ready(&self) {
        while self.events.borrow().is_empty() {
            self.ready.notified().await;
        }
    }
}
