//! Bugs, most of which real systems shipped, each planted at one or two places, to show that the tests would
//! see them.
//!
//! A build with `--cfg mutants` holds them all, and a value given to a replica or a log when it is built says
//! which one is active: [`Config::mutant`](crate::io::Config::mutant) and the same field of the log's
//! options. In every other build [`Mutant`] has no values, so `Option<Mutant>` takes no room and is always
//! `None`, and [`mutated!`](crate::mutated) is the constant `false`.
//!
//! Where an assertion of ours would end a run before anybody could see what the bug does to the world, the
//! mutant goes round it: beside the assertion, never within, for its text is in every binary.

use std::fmt;
use std::str::FromStr;

/// Whether the bug of this name is to be committed here: `mutated!(config.mutant, AckBeforeFlush)`.
#[cfg(mutants)]
#[macro_export]
macro_rules! mutated {
    ($active:expr, $name:ident) => {
        $active == Some($crate::mutant::Mutant::$name)
    };
}

/// Whether the bug of this name is to be committed here: never, in a build without `--cfg mutants`.
#[cfg(not(mutants))]
#[macro_export]
macro_rules! mutated {
    ($active:expr, $name:ident) => {
        $crate::mutant::never(&$active)
    };
}

/// What [`mutated!`](crate::mutated) is without `--cfg mutants`.
#[cfg(not(mutants))]
#[doc(hidden)]
#[must_use]
#[inline(always)]
pub const fn never(_: &Option<Mutant>) -> bool {
    false
}

macro_rules! mutants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A bug that can be switched on. Without `--cfg mutants` there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Mutant {
            $($(#[$doc])* $variant,)*
        }

        /// Lies in every program that holds mutants, so that they can be found there.
        #[cfg(mutants)]
        #[used]
        static NAMES: &[&str] = &[$($name,)*];

        impl Mutant {
            /// Every mutant that this build holds.
            pub const ALL: &[Mutant] = &[$(Mutant::$variant,)*];

            /// Its name in commands and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)*
                }
            }
        }
    };
}

#[cfg(not(mutants))]
mutants! {}

// One name a line, in quotes: `.ci/stages/25-no-mutants.sh` looks for them in what is shipped.
#[cfg(mutants)]
mutants! {
    // Durability and acknowledgement.

    /// A follower acknowledges entries when it has accepted them. A power cut takes what a quorum was
    /// counted from. tikv#994, etcd#10166, dragonboat#393.
    AckBeforeFlush = "ack-before-flush",

    /// A vote leaves before it is durable, and after a crash another is given in the same term. PySyncObj#202,
    /// nodedb#161.
    VoteBeforeFlush = "vote-before-flush",

    /// A vote leaves when its record is durable and nothing repeats it yet: one bad block hides it. The single
    /// copies of LogCabin and ZooKeeper that PAR (FAST'18) damaged.
    VoteBeforeEcho = "vote-before-echo",

    /// Term and vote are two writes, and nobody waits for the second: here it never comes, so that whoever
    /// restarts votes again in the same term. hashicorp/raft#661.
    VoteNotWritten = "vote-not-written",

    /// A term that was learnt from a leader is not written, so that entries of it become durable first, and a
    /// restart leads back to a term that was left. openraft's docs/protocol/io_ordering.md.
    TermNotWritten = "term-not-written",

    /// Votes and pre-votes compare the log as it is durable, not as it was accepted: a vote goes to a
    /// candidate whose log is behind. That late acks are dropped hides most of the harm; the rule itself is
    /// broken whenever an append is in flight. Accepted and durable were confused in etcd-io/raft#8.
    VoteByDurableLog = "vote-by-durable-log",

    /// Votes and pre-votes compare logs by length and not by term, so that a long log of an old term wins over
    /// what is committed. A check that was missing altogether: ClickHouse/NuRaft#134, in the pre-vote.
    VoteByLength = "vote-by-length",

    /// A replica whose log came back with a bad end forgets that it may have acknowledged more, and votes with what
    /// is left. What cutting at the first bad checksum does: PAR (FAST'18) of LogCabin and ZooKeeper.
    GuardIgnored = "guard-ignored",

    /// Whether a log has what may have been lost is asked by its length and not by its term.
    GuardByLength = "guard-by-length",

    /// What may have been lost counts as back as soon as a leader is heard of, before it has brought anything.
    GuardEndsEarly = "guard-ends-early",

    /// What may have been lost is never back, whatever a leader brings: a replica that was guarded once is no use any more.
    GuardNeverEnds = "guard-never-ends",

    /// A directory that was put back to an earlier state goes on as if it had acknowledged nothing since.
    RollbackIgnored = "rollback-ignored",

    /// A guard is settled by answers that one restart forgets: whoever gave them goes on acknowledging in the old term.
    SettleBeforeFlush = "settle-before-flush",

    /// It is settled by voters that do not know themselves what they have acknowledged.
    SettleCountsGuarded = "settle-counts-guarded",

    /// It is settled by whoever answers first.
    SettleByMinority = "settle-by-minority",

    /// It is settled in the term of the guard, in which others may still acknowledge.
    SettleInAnOldTerm = "settle-in-an-old-term",

    /// A pre-vote that comes late, when the candidacy it was for has begun, counts as a vote. Whoever gave it
    /// has promised nothing and may vote for somebody else in the same term.
    PreVoteCountsAsVote = "pre-vote-counts-as-vote",

    /// A vote for an earlier candidacy of the same replica, come late, counts for the present one (Raft
    /// §5.1: what is of an older term is dropped).
    StaleVoteCounts = "stale-vote-counts",

    /// An ack that waited for the disk leaves although its term has passed: it may speak of an entry that has
    /// been replaced meanwhile, and the old leader counts it. openraft cecb5de8.
    LateAck = "late-ack",

    /// A follower acknowledges the end of what it has durable, whether or not that is the leader's log. The
    /// leader drops an ack whose chain is not its own, and so may never learn what is equal. The same trust
    /// in what a follower reports: openraft cecb5de8, raft-rs#571.
    AckDurableEnd = "ack-durable-end",

    /// The same, and the leader counts it as in protocols whose acks are numbers alone: what was never
    /// replicated commits. raft-rs#571, and eight more libraries of the re-join survey of 2025.
    AckChainUnchecked = "ack-chain-unchecked",

    /// The hint in a rejection, accepted but perhaps not durable, counts as an acknowledgement. Rejections
    /// that moved what they should not: openraft#1500, RATIS-1074.
    RejectAdvancesMatch = "reject-advances-match",

    /// What a follower was known to have stays known when a connection breaks or comes up: match belongs to a
    /// session (DESIGN §5), for it may be another follower's disk by then.
    MatchSurvivesSession = "match-survives-session",

    /// A group acts on what it begins with before that is durable: it may give its vote in a group that it does
    /// not know after a power cut.
    GenesisNotAwaited = "genesis-not-awaited",

    /// A log that has failed stops nobody: whoever leads goes on leading and taking proposals that its own disk
    /// will never have (DESIGN §5).
    PoisonedLeads = "poisoned-leads",

    /// A leader counts its own entries before its disk has them. etcd#10508.
    LeaderCountsUnflushed = "leader-counts-unflushed",

    // Commitment and the log.

    /// A follower moves its commit index by number: whatever it holds there counts as committed, also what no
    /// leader of this term has proved. openraft's docs/protocol/commit.md.
    CommitWithoutChain = "commit-without-chain",

    /// A follower whose log is short takes all of it for committed when the leader's commit index lies beyond,
    /// not just what was proved (Raft figure 2: the index of the last *new* entry). openraft 3a43c80c is of
    /// this family.
    CommitNotClamped = "commit-not-clamped",

    /// Entries of earlier terms commit by counting: Raft figure 8 takes them back.
    CommitOlderTerm = "commit-older-term",

    /// The quorum's index is taken from unsorted progress: of three, that of the second replica. openraft#1802.
    QuorumUnsorted = "quorum-unsorted",

    /// Half of an even number of voters elects a leader, and so does the other half. Two quorums that do not
    /// meet: openraft#2002.
    HalfElects = "half-elects",

    /// What an append brings is written again though the log has it, which cuts what lies beyond: a late
    /// append takes back what was acknowledged since. Of this family: braft#218, sofa-jraft#1188.
    AppendTruncates = "append-truncates",

    /// A leader that contradicts what is committed here is followed instead of halting the group. Needs a
    /// leader that has lost something, and so disks beyond what a cluster survives. braft#218, openraft#1892.
    TruncateCommitted = "truncate-committed",

    /// A leader begins without a no-op: what earlier leaders left waits for the next proposal, which may never
    /// come. The barrier that openraft#2051 added.
    NoNoop = "no-noop",

    /// A new leader begins with what it knows to be committed and drops the rest: what the leader before it
    /// committed last is gone (Raft §5.4.3).
    LeaderDropsTail = "leader-drops-tail",

    /// What a follower has durably counts as final, and a leader that replaces it, as it may (Raft §5.3), is
    /// taken for one that has lost something: the group halts for good.
    DurableIsSettled = "durable-is-settled",

    // Elections and liveness.

    /// Votes and pre-votes are given although a leader is heard: whoever lost only its own link to the leader
    /// deposes it, again and again. etcd#8498, raft-rs#84.
    StickinessIgnored = "stickiness-ignored",

    /// Stickiness holds for pre-votes and not for votes: a candidate that has its pre-votes from others still
    /// deposes a leader that this replica hears (thesis §4.2.3).
    RealVoteNotSticky = "real-vote-not-sticky",

    /// Any pre-vote is taken for one of the election that is being asked about: what was granted for an earlier
    /// one, when there was no leader, deposes the leader that there is now.
    PreVoteAnyTerm = "pre-vote-any-term",

    /// A leader that no quorum answers leads on: with links that carry one way only the others hear it and
    /// never elect, and nothing commits. Ranges of CockroachDB were lost to partial partitions like that.
    CheckQuorumOff = "check-quorum-off",

    /// One follower that answers is enough to go on leading: of five a leader with one follower never gives up,
    /// and nothing commits.
    CheckQuorumAnyPeer = "check-quorum-any-peer",

    /// Every election timeout ends at a whole multiple of the shortest one, so that candidates collide again and
    /// again. openraft 5e15946d.
    TimeoutsNotRandom = "timeouts-not-random",

    /// A leader whose disk stands still leads on, until it may hold no more and refuses every proposal.
    /// hashicorp/raft#503.
    SlowDiskLeads = "slow-disk-leads",

    /// Heartbeats carry no commit index: followers of an idle group never apply its last entries.
    /// cockroach#27983 is of this family.
    HeartbeatWithoutCommit = "heartbeat-without-commit",

    /// What was on its way when a connection broke keeps its room in the window for ever, so that a full one
    /// never moves again. cockroach#133202, etcd's empty probe.
    WindowLeak = "window-leak",

    /// The window counts bytes and not entries: a follower is sent any number of small ones ahead.
    InflightEntriesUnbounded = "inflight-entries-unbounded",

    /// After a rejection the leader goes on one entry too far, is rejected for the same reason, and never gets
    /// anywhere.
    ProbeBeyondHint = "probe-beyond-hint",

    /// A probe or an answer that was lost is not asked for again, and the follower is stuck until something
    /// else happens. etcd#7037, etcd-io/raft#52.
    LostNotAskedAgain = "lost-not-asked-again",

    /// A follower for which reading the log failed once is never read for again.
    ReadFailedForEver = "read-failed-for-ever",

    /// Who waits for entries that cannot be read from the log waits for them for ever: nothing else is tried.
    ReadingForEver = "reading-for-ever",

    /// A lane that was full once stays so: a follower gets heartbeats and never an entry. hashicorp/raft#612.
    LaneStaysFull = "lane-stays-full",

    /// A leader takes proposals without a bound while nothing commits. RATIS-2632, scylladb#31402.
    UncommittedUnbounded = "uncommitted-unbounded",

    // From the log to the client.

    /// Entries are applied, and clients answered, when they are appended. etcd#10508, aeron#1739.
    ApplyBeyondCommit = "apply-beyond-commit",

    /// Whoever waits for an entry that was replaced is answered with what is committed in its place. Lost
    /// updates like these: Redis-Raft (Jepsen 2020).
    AnswerReplaced = "answer-replaced",

    /// Whoever waits for an entry that was replaced is never answered, and the bytes that were held for it are
    /// never given back.
    AnswerForgotten = "answer-forgotten",

    /// An entry that cannot be read back for the machine is passed over, and the machine is another one from
    /// then on.
    UnreadableSkipped = "unreadable-skipped",

    /// Who waits long for an answer has the engine propose again, and both commit. fluree/db#1839.
    RetriedByEngine = "retried-by-engine",

    /// A client is told that its proposal is in no log, so that it may propose again, though the entry was
    /// appended and may yet commit. openraft#2100.
    SaysNeverAppended = "says-never-appended",

    /// Who no longer leads goes on taking proposals, and answers them never. HomeStore#745.
    DoorStaysOpen = "door-stays-open",

    /// Committed entries are handed to an applier that has no room for them. RATIS-2632.
    ApplyQueueUnbounded = "apply-queue-unbounded",

    // The log on disk.

    /// A recovery lets entries of a higher term stand against what was written later: figure 8 overwrites with
    /// an *older* term, and what was acknowledged then is gone, or the log does not open any more. Logs that
    /// are an index by term replay like that.
    SupersedeByTerm = "supersede-by-term",

    /// A recovery believes what an earlier process wrote and did not flush; a power cut after it takes back
    /// what was acknowledged on that. LazyFS (VLDB'24) found it in etcd, ZooKeeper and Redis.
    RecoveryReadsUnflushed = "recovery-reads-unflushed",

    /// A recovery counts only what a later flush group states as durable: the last flush group has no later
    /// one, and what was acknowledged with it is gone.
    OnlyMarkedCounts = "only-marked-counts",

    /// A restart goes on with the boot that was there: stamps and replication sessions of two lives are the
    /// same, and what one life left unfinished passes for the other's.
    BootReused = "boot-reused",

    /// A directory's identity is its node's number, so that an empty one, once it meets a peer with a genesis,
    /// adopts it as the voter whose log it has lost, and votes against that. etcd#21178, nexus#3939,
    /// cockroach#756.
    WipedIsOldVoter = "wiped-is-old-voter",

    /// A recovery cuts at the first bad checksum, also where something durable went bad. nats-server#7549,
    /// pebble#453.
    RotIsTorn = "rot-is-torn",

    /// A replica that lacks entries which it had acknowledged votes for whoever has no more than what is left.
    MissingUnguarded = "missing-unguarded",

    /// A recovery counts entries that it knows of and cannot read: they are acknowledged as durable.
    HoleAcknowledgedOver = "hole-acknowledged-over",

    /// A recovery takes entries that were written once more for new ones: what lies behind them is cut, though it was
    /// acknowledged.
    RewriteAsEntries = "rewrite-as-entries",

    /// A flush that failed is made again, and the kernel has forgotten what it owed: the second one succeeds
    /// without the data. cockroach#37102, raft-engine#131. Needs the drained flush mode.
    FlushRetried = "flush-retried",

    /// A flush that failed counts as one that did not. Needs the drained flush mode.
    FlushErrorIgnored = "flush-error-ignored",

    /// A flush counts for writes to other files than its own. Needs the drained flush mode.
    FlushCoversOtherSlot = "flush-covers-other-slot",

    /// Whether a write is durable when it completes is asked when it completes: the flush mode may have changed
    /// since it was begun.
    ModeAtCompletion = "mode-at-completion",

    /// A slot is used as soon as it is written full of zeros, before that is flushed: a power cut takes the
    /// file's length back, and what was acknowledged in it.
    SlotUsedUnflushed = "slot-used-unflushed",

    /// A write that ended early counts as whole. timeplus-io/proton#1229, cqlite#1390.
    ShortWriteOk = "short-write-ok",

    /// A completion counts for everything submitted before it. openraft 2af491fb (#1960).
    CompletionOrder = "completion-order",

    /// A flush counts for writes that ended while it was under way. cowsql/raft#22. Needs the drained flush
    /// mode.
    FlushCoversLater = "flush-covers-later",

    /// Blocks that an earlier use of a slot left behind, and flush groups that do not follow the one before,
    /// are taken for the log's own where they happen to lie. raft-engine before it signed its logs.
    StaleFrame = "stale-frame",

    /// A flush group states as durable what is still in flight before it. A power cut makes rot of what was
    /// merely torn, and the node does not come back. redpanda#2937 is of this family.
    MarkAhead = "mark-ahead",

    /// A segment's first flush groups count before the segment's header is durable, and are lost with it.
    /// raft-engine#219.
    HeaderNotAwaited = "header-not-awaited",

    /// A recovery that may read from the page cache does not write again what it found there: after a flush
    /// that failed, only the cache has it. What fsync's failures do (ATC'20) to PostgreSQL and others.
    PageCacheTrusted = "page-cache-trusted",

    /// A block is not asked whether it lies where it was written: whole is enough. One that a disk put somewhere
    /// else passes for a block of the log, or hides one as if nothing had been written over it yet. ZFS and WiredTiger
    /// keep the sum with the address because of that.
    BlockAnywhere = "block-anywhere",

    /// What lies in a free slot and is no whole block of the log stays there when the slot is taken. Once the log has
    /// grown up to just before it, the next opening takes it for a block that was durable and went bad, and the node
    /// does not start any more. etcd#6267.
    DebrisKept = "debris-kept",

    // Snapshots.

    /// The log is cut as far as it is committed and durable here, whatever of it the machine would come back with.
    CutBeyondAnchor = "cut-beyond-anchor",

    /// The anchor is written when a snapshot is ordered, and the log cut for it, not when it is durable and was read
    /// back: a power cut leaves a log without its beginning and no snapshot. What compaction did in nats-server#7549.
    AnchorBeforeSnapshot = "anchor-before-snapshot",

    /// A received snapshot gets its name before its files are flushed and without being read back: a power cut
    /// leaves half of it under a name that says it is whole.
    InstallHalf = "install-half",

    /// The machine takes over a received snapshot before the base of the log is durable: a power cut leaves the old
    /// log, and a machine that was ahead of it.
    InstalledWithoutBase = "installed-without-base",

    /// A leader tells a follower that it is behind only while it has something to commit: after an idle one that has
    /// cut all of its log nobody ever catches up. openraft#1828.
    IdleLeaderNeverSends = "idle-leader-never-sends",

    /// A received snapshot keeps the log beyond it without asking whether that goes on from it: entries that lost an
    /// election come back. openraft#559.
    RestKeptUnchecked = "rest-kept-unchecked",

    /// A snapshot that contradicts what is committed here, the same index with another term, is installed all the
    /// same. openraft#1892.
    SnapshotOtherTerm = "snapshot-other-term",

    /// The membership from before a snapshot stays in effect after it. openraft#1808.
    MembershipSurvivesInstall = "membership-survives-install",

    /// A segment that nobody needs is released wherever it stands, between others that are needed. The next opening
    /// misses it, and cannot tell that from a loss.
    ReleaseOutOfOrder = "release-out-of-order",

    /// A segment is released as soon as it is cut away: before two later segments state where every group stands, and
    /// before the header that says so is durable. A power cut leaves the old log without its beginning.
    ReleaseTooSoon = "release-too-soon",

    /// A log is cut behind each new snapshot although a follower fetches an older one: what that goes on from is gone
    /// before it has come. cockroach#8639.
    FenceIgnored = "fence-ignored",

    /// Log is kept for a follower until it has its snapshot, and not until it has caught up with what came meanwhile:
    /// the next cut makes it fetch again, under load for ever. Our own.
    FenceEndsWithSnapshot = "fence-ends-with-snapshot",

    // Elections, once more.

    /// Who refuses a pre-vote because its term is higher is not heard: whoever asked keeps its term and is
    /// refused for ever, though only its log is long enough to lead. openraft#1796.
    PreVoteRefusalIgnored = "pre-vote-refusal-ignored",
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no mutant of this build has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build holds no mutant called {0:?}")]
pub struct UnknownMutant(pub String);

impl FromStr for Mutant {
    type Err = UnknownMutant;

    fn from_str(name: &str) -> Result<Self, UnknownMutant> {
        let named = Mutant::ALL.iter().find(|mutant| mutant.name() == name);
        named.copied().ok_or_else(|| UnknownMutant(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(mutants))]
    #[test]
    fn without_the_cfg_there_are_none_and_they_take_no_room() {
        assert_eq!(size_of::<Option<Mutant>>(), 0);
        assert_eq!(Mutant::ALL, []);
        assert!("ack-before-flush".parse::<Mutant>().is_err());
    }

    #[cfg(mutants)]
    #[test]
    fn every_name_is_of_one_mutant_and_reads_back() {
        assert!(Mutant::ALL.len() >= 88);
        for mutant in Mutant::ALL {
            assert_eq!(mutant.name().parse(), Ok(*mutant));
        }
        assert!("kind".parse::<Mutant>().is_err());
        assert!(mutated!(Some(Mutant::NoNoop), NoNoop));
        assert!(!mutated!(None::<Mutant>, NoNoop));
    }
}
