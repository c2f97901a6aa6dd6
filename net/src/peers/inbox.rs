//! What came from peers and waits for the shard. Bounded in bytes: a reader that finds no room stops
//! reading, and not reading is the back-pressure.

use std::cell::Cell;
use std::task::Waker;

use logdrive_raft::message::{Lane, Message};
use tokio::sync::Notify;

use super::PeerEvent;
use crate::mailbox::Mailbox;

/// Events, and how many bytes of them the shard holds.
#[derive(Debug)]
pub(super) struct Inbox {
    mailbox: Mailbox<PeerEvent>,
    /// Bytes of messages that were put in and have not been released.
    held_bytes: Cell<usize>,
    /// Bytes of control messages and acks that have not been taken out.
    small_bytes: Cell<usize>,
    /// The same of parts of snapshots.
    part_bytes: Cell<usize>,
    bytes_max: usize,
    room: Notify,
}

impl Inbox {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            mailbox: Mailbox::new(),
            held_bytes: Cell::new(0),
            small_bytes: Cell::new(0),
            part_bytes: Cell::new(0),
            bytes_max,
            room: Notify::new(),
        }
    }

    /// Waits until there is room for `message`.
    ///
    /// Appends wait for all bytes that the shard holds. Control and acks have a small budget of their own,
    /// so that they do not wait behind appends, and parts of snapshots one, so that nothing waits behind those.
    pub(super) async fn room_for(&self, message: &Message) {
        let bytes = message.cost_bytes();
        loop {
            let room = self.room.notified();
            let fits = match message.lane() {
                Lane::Append => {
                    let held = self.held_bytes.get();
                    held == 0 || held + bytes <= self.bytes_max
                }
                Lane::Control | Lane::Ack => {
                    let small = self.small_bytes.get();
                    small == 0 || small + bytes <= SMALL_BYTES_MAX
                }
                Lane::Snapshot => {
                    let parts = self.part_bytes.get();
                    parts == 0 || parts + bytes <= PARTS_BYTES_MAX
                }
            };
            if fits {
                return;
            }
            room.await;
        }
    }

    /// Puts a message in, for which there is room.
    pub(super) fn push_message(&self, message: Message) {
        let bytes = message.cost_bytes();
        self.held_bytes.set(self.held_bytes.get() + bytes);
        let own = match message.lane() {
            Lane::Append => None,
            Lane::Control | Lane::Ack => Some(&self.small_bytes),
            Lane::Snapshot => Some(&self.part_bytes),
        };
        if let Some(own) = own {
            own.set(own.get() + bytes);
        }
        self.push(PeerEvent::Message(message));
    }

    /// Puts in what is no message. There are at most a few a connection and backoff interval.
    pub(super) fn push(&self, event: PeerEvent) {
        self.mailbox.push(event);
    }

    /// Takes out everything.
    pub(super) fn take(&self, out: &mut Vec<PeerEvent>) {
        self.mailbox.take(out);
        let taken = self.small_bytes.replace(0) + self.part_bytes.replace(0);
        if taken != 0 {
            self.room.notify_waiters();
        }
    }

    pub(super) fn release(&self, bytes: usize) {
        let held = self.held_bytes.get();
        assert!(
            bytes <= held,
            "released {bytes} bytes of messages, only {held} were held"
        );
        self.held_bytes.set(held - bytes);
        if bytes != 0 {
            self.room.notify_waiters();
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.get()
    }

    /// The most bytes of messages that are held, one largest append aside.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max + SMALL_BYTES_MAX + PARTS_BYTES_MAX
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        self.mailbox.set_waker(waker);
    }

    /// Waits until there is something to take out.
    pub(super) async fn ready(&self) {
        self.mailbox.ready().await;
    }
}

/// The most bytes of control messages and acks that wait.
const SMALL_BYTES_MAX: usize = 1 << 20;

/// The most bytes of parts of snapshots that wait. Whoever fetches them asks for no more than that.
const PARTS_BYTES_MAX: usize = 2 << 20;
