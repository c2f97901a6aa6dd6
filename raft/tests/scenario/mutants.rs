//! Each mutant of the core is no mere variant of it: the claim that it breaks is answered otherwise.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use logdrive_raft::mutant::Mutant;

use super::play;

const BROKEN: [(Mutant, &str); 35] = [
    (Mutant::AckBeforeFlush, "replication/ack_when_durable"),
    (Mutant::VoteBeforeFlush, "election/vote_waits_for_its_echo"),
    (Mutant::VoteNotWritten, "election/one_vote_a_term"),
    (Mutant::TermNotWritten, "durability/crash_before_the_flush"),
    (
        Mutant::VoteByDurableLog,
        "election/votes_compare_what_was_accepted",
    ),
    (Mutant::VoteByLength, "election/up_to_date"),
    (Mutant::GuardIgnored, "safety/guard_elects_only_who_has_it"),
    (Mutant::GuardByLength, "safety/guard_elects_only_who_has_it"),
    (Mutant::GuardNeverEnds, "safety/guard_ends_with_the_log"),
    (
        Mutant::GuardEndsEarly,
        "safety/guard_ends_with_all_of_a_leader",
    ),
    (Mutant::RollbackIgnored, "safety/rolled_back_halts"),
    (
        Mutant::SettleBeforeFlush,
        "safety/settle_answers_once_the_term_is_durable",
    ),
    (
        Mutant::SettleCountsGuarded,
        "safety/settle_counts_only_who_is_whole",
    ),
    (Mutant::SettleByMinority, "safety/settle_needs_all_quorums"),
    (
        Mutant::SettleInAnOldTerm,
        "safety/settle_lets_the_guard_fall",
    ),
    (Mutant::AckDurableEnd, "replication/ack_only_what_is_proved"),
    (Mutant::AckChainUnchecked, "replication/foreign_ack"),
    (
        Mutant::RejectAdvancesMatch,
        "replication/a_follower_comes_back_shorter",
    ),
    (Mutant::LeaderCountsUnflushed, "commit/slow_leader_disk"),
    (Mutant::CommitWithoutChain, "commit/by_chain"),
    (Mutant::CommitNotClamped, "commit/shorter_log"),
    (Mutant::CommitOlderTerm, "commit/figure_8"),
    (Mutant::QuorumUnsorted, "commit/slow_leader_disk"),
    (Mutant::HalfElects, "membership/joint_election"),
    (
        Mutant::AppendTruncates,
        "replication/duplicates_are_not_written",
    ),
    (Mutant::TruncateCommitted, "safety/committed_conflict_halts"),
    (Mutant::NoNoop, "election/noop"),
    (Mutant::StickinessIgnored, "election/stickiness"),
    (Mutant::CheckQuorumOff, "election/check_quorum"),
    (Mutant::SlowDiskLeads, "flow/slow_disk_by_time"),
    (
        Mutant::HeartbeatWithoutCommit,
        "commit/idle_followers_learn",
    ),
    (Mutant::WindowLeak, "flow/disconnect_returns_the_window"),
    (Mutant::LostNotAskedAgain, "replication/lost_append"),
    (Mutant::LaneStaysFull, "flow/full_lane"),
    (Mutant::UncommittedUnbounded, "flow/uncommitted_is_bounded"),
];

#[test]
fn every_mutant_of_the_core_breaks_its_claim() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    for (mutant, claim) in BROKEN {
        let text = std::fs::read_to_string(directory.join(claim).with_extension("txt")).unwrap();
        // Some let a later command find nothing to do, which ends the scenario.
        let played = catch_unwind(AssertUnwindSafe(|| play(&text, Some(mutant))));
        assert_ne!(played.ok(), Some(text), "{mutant} keeps {claim}");
    }
}
