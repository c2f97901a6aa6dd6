//! What the shard's thread and everybody else share: commands in, status out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use logdrive_raft::{GroupId, Micros, NodeId};
use logdrive_shard::{Fatal, ShardStatus};
use logdrive_wal::FlushHistogram;
use tokio::sync::Notify;

use crate::memory::{NetMemory, ThreadBytes};
use crate::settings::Limits;
use crate::snapshot_now::Waiting;
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
    /// This node's id, for log events.
    pub(crate) node: u64,
    cluster: String,
    limits: Limits,
    pub(crate) notify: Arc<Notifier>,
    started: Instant,
    ended: AtomicBool,
    /// A shutdown is all there is to say, and the last word counts.
    command: Mutex<Option<Command>>,
    /// Groups of which a snapshot is wanted.
    wanted_snapshots: Mutex<BTreeSet<GroupId>>,
    /// Who waits for one.
    pub(crate) snapshots: Waiting,
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
    /// Whoever waits for a leader, by number.
    waiting: BTreeMap<u64, Waker>,
    waiters: u64,
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
    pub(crate) fn new(node: NodeId, cluster: String, limits: Limits) -> Self {
        Self {
            node: node.0,
            cluster,
            limits,
            notify: Arc::default(),
            started: Instant::now(),
            ended: AtomicBool::new(false),
            command: Mutex::new(None),
            wanted_snapshots: Mutex::default(),
            snapshots: Waiting::default(),
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

    /// A snapshot of a group is to be taken.
    pub(crate) fn want_snapshot(&self, group: GroupId) {
        let wanted = self.wanted_snapshots.lock();
        wanted.unwrap_or_else(PoisonError::into_inner).insert(group);
        self.notify.notify.notify_one();
    }

    pub(crate) fn take_wanted_snapshots(&self) -> BTreeSet<GroupId> {
        let mut wanted = self
            .wanted_snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *wanted)
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
        wake_all(woken);
    }

    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.published().leaders.get(&group).copied()
    }

    /// The leader of a group, or the waker is kept under the number in `waiter`, which the first call draws.
    pub(crate) fn poll_leader(
        &self,
        group: GroupId,
        waiter: &mut Option<u64>,
        waker: &Waker,
    ) -> Poll<Option<NodeId>> {
        // Cloned and dropped outside the lock: it is the caller's code.
        let waker = waker.clone();
        let mut published = self.published();
        if let Some(leader) = published.leaders.get(&group) {
            return Poll::Ready(Some(*leader));
        }
        if self.ended.load(Ordering::SeqCst) {
            return Poll::Ready(None);
        }
        let number = *waiter.get_or_insert_with(|| {
            published.waiters += 1;
            published.waiters
        });
        let before = published.waiting.insert(number, waker);
        drop(published);
        drop(before);
        Poll::Pending
    }

    /// Nobody waits under this number any more.
    pub(crate) fn forget_waiter(&self, waiter: u64) {
        let waker = self.published().waiting.remove(&waiter);
        // Dropped outside the lock: it is the caller's code.
        drop(waker);
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
        self.snapshots.end_all();
        let woken = std::mem::take(&mut self.published().waiting);
        wake_all(woken);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(crate) fn status(
        &self,
        applied: impl Fn(GroupId) -> u64,
        threads: ThreadBytes,
        now: Micros,
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
            threads,
            now,
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

/// Wakes callers. It is their code that runs, which must not run into the shard's.
fn wake_all(waiting: BTreeMap<u64, Waker>) {
    for waker in waiting.into_values() {
        drop(Fatal::catch(|| waker.wake()));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use crate::node::LeaderKnown;

    use super::*;

    #[test]
    fn who_no_longer_waits_for_a_leader_is_forgotten() {
        let shared = Arc::new(Shared::new(NodeId(1), "c".to_owned(), Limits::default()));
        let poll = |future: &mut LeaderKnown| {
            let mut context = Context::from_waker(Waker::noop());
            std::pin::Pin::new(future).poll(&mut context)
        };
        for _ in 0..100 {
            let mut future = LeaderKnown::new(Arc::clone(&shared), GroupId(1));
            assert!(poll(&mut future).is_pending());
            assert!(poll(&mut future).is_pending());
            assert_eq!(shared.published().waiting.len(), 1);
        }
        assert!(shared.published().waiting.is_empty());
        let mut future = LeaderKnown::new(Arc::clone(&shared), GroupId(1));
        assert!(poll(&mut future).is_pending());
        shared.set_leader(GroupId(1), Some(NodeId(2)));
        assert!(shared.published().waiting.is_empty());
        assert_eq!(poll(&mut future), Poll::Ready(Some(NodeId(2))));
    }
}
