//! What the shard's thread and everybody else share: commands in, status out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use logdrive_raft::{GroupId, NodeId};
use logdrive_shard::{Fatal, ShardStatus};
use logdrive_wal::FlushHistogram;
use tokio::sync::Notify;

use crate::memory::NetMemory;
use crate::settings::Limits;
use crate::status::{Alarm, Status};

/// What the shard's thread is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Shut the doors, drain for at most so long, end.
    Shutdown { drain: Duration },
}

/// The shared state of a node.
#[derive(Debug)]
pub(crate) struct Shared {
    cluster: String,
    limits: Limits,
    pub(crate) notify: Arc<Notifier>,
    started: Instant,
    ended: AtomicBool,
    /// A shutdown is all there is to say, and the last word counts.
    command: Mutex<Option<Command>>,
    published: Mutex<Published>,
}

#[derive(Debug, Default)]
struct Published {
    /// There from before the node is handed out.
    shard: Option<ShardStatus>,
    links: Vec<crate::status::LinkStatus>,
    net: NetMemory,
    alarms: Vec<Alarm>,
    net_fallbacks: Vec<String>,
    leaders: BTreeMap<GroupId, NodeId>,
    waiting: Vec<Waker>,
}

/// Wakes the shard's thread.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    pub(crate) notify: Notify,
}

impl Wake for Notifier {
    fn wake(self: Arc<Self>) {
        self.notify.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.notify.notify_one();
    }
}

impl Shared {
    pub(crate) fn new(cluster: String, limits: Limits) -> Self {
        Self {
            cluster,
            limits,
            notify: Arc::default(),
            started: Instant::now(),
            ended: AtomicBool::new(false),
            command: Mutex::new(None),
            published: Mutex::default(),
        }
    }

    /// Wakes the shard's thread.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.notify))
    }

    pub(crate) fn command(&self, command: Command) {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
        self.notify.notify.notify_one();
    }

    pub(crate) fn take_command(&self) -> Option<Command> {
        self.command
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn publish(
        &self,
        shard: ShardStatus,
        links: Vec<crate::status::LinkStatus>,
        net: NetMemory,
    ) {
        let mut published = self.published();
        published.shard = Some(shard);
        published.links = links;
        published.net = net;
    }

    /// What the network wanted and could not have. Said once, when the ports are bound.
    pub(crate) fn set_net_fallbacks(&self, fallbacks: Vec<String>) {
        self.published().net_fallbacks = fallbacks;
    }

    pub(crate) fn set_leader(&self, group: GroupId, leader: Option<NodeId>) {
        let woken = {
            let mut published = self.published();
            match leader {
                Some(leader) => published.leaders.insert(group, leader),
                None => published.leaders.remove(&group),
            };
            std::mem::take(&mut published.waiting)
        };
        for waker in woken {
            // The caller's code, which must not run into the shard's.
            drop(Fatal::catch(|| waker.wake()));
        }
    }

    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.published().leaders.get(&group).copied()
    }

    pub(crate) fn poll_leader(&self, group: GroupId, waker: &Waker) -> Poll<Option<NodeId>> {
        let mut published = self.published();
        if let Some(leader) = published.leaders.get(&group) {
            return Poll::Ready(Some(*leader));
        }
        if self.ended.load(Ordering::SeqCst) {
            return Poll::Ready(None);
        }
        // One entry a waiter: a future that is polled again replaces its waker.
        if !published
            .waiting
            .iter()
            .any(|waiting| waiting.will_wake(waker))
        {
            published.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    pub(crate) fn raise(&self, alarm: Alarm) {
        let mut published = self.published();
        published
            .alarms
            .retain(|old| (old.code, old.group) != (alarm.code, alarm.group));
        published.alarms.push(alarm);
    }

    pub(crate) fn clear(&self, code: &'static str, group: Option<u64>) {
        let mut published = self.published();
        published
            .alarms
            .retain(|alarm| (alarm.code, alarm.group) != (code, group));
    }

    /// The shard's thread has ended: nobody will be answered any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        let woken = std::mem::take(&mut self.published().waiting);
        for waker in woken {
            // The caller's code, which must not run into the shard's.
            drop(Fatal::catch(|| waker.wake()));
        }
    }

    pub(crate) fn status(
        &self,
        applied: impl Fn(GroupId) -> u64,
        apply_bytes: (usize, usize),
    ) -> Status {
        let published = self.published();
        let mut status = Status::build(
            &self.cluster,
            published
                .shard
                .as_ref()
                .expect("published before the node was handed out"),
            &published.links,
            &published.net,
            &self.limits,
            &published.alarms,
            self.started.elapsed(),
            !self.ended.load(Ordering::SeqCst),
            applied,
            apply_bytes,
        );
        status.net.fallbacks.clone_from(&published.net_fallbacks);
        status
    }

    /// How long the log's flushes took, as of the last publication.
    pub(crate) fn flushes(&self) -> FlushHistogram {
        let published = self.published();
        let shard = published.shard.as_ref();
        shard
            .expect("published before the node was handed out")
            .wal
            .flush_histogram
    }

    /// Seconds since the node started.
    pub(crate) fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn published(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
