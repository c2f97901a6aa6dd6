//! Three shards, one of which has a disk that fails: a log that refused a write or a flush is finished for
//! this process, says nothing more, and the others go on without it.

use crate::trio::{GROUP, Trio};
use logdrive_raft::io::Role;
use logdrive_raft::{Body, Index, LogPosition, Term};
use logdrive_shard::{Failure, GroupState, Outcome, Refused};
use logdrive_sim::disk::{Crash, Fault, SimDiskOptions};
use logdrive_wal::disk::FlushMode;

/// Each fault, and the flush mode in which a write meets it.
const FAULTS: [(Fault, FlushMode); 3] = [
    (Fault::WriteError, FlushMode::Dsync),
    (Fault::ShortWrite, FlushMode::Dsync),
    (Fault::FlushError, FlushMode::DrainedFsync),
];

fn trio(flush_mode: FlushMode, direct: bool) -> Trio {
    let disk = SimDiskOptions {
        flush_mode,
        direct,
        ..SimDiskOptions::default()
    };
    let mut trio = Trio::with_disk([(64 << 10, 64); 3], disk);
    for _ in 0..3 {
        trio.put(100).unwrap();
    }
    trio
}

fn state(trio: &Trio, place: usize) -> GroupState {
    trio.nodes[place].status().unwrap().groups[0].state.clone()
}

fn is_poisoned(trio: &Trio, place: usize) -> bool {
    let says = |why: &str| why == "the log refuses every further write";
    matches!(state(trio, place), GroupState::Halted(why) if says(&why))
}

fn commit(trio: &Trio, place: usize) -> LogPosition {
    trio.nodes[place].core(GROUP).unwrap().commit()
}

/// Runs in small steps until the log of a node is poisoned, and for a while beyond that. What it sent after is
/// returned.
fn poison(trio: &mut Trio, place: usize) -> Vec<Body> {
    for _ in 0..20_000 {
        if is_poisoned(trio, place) {
            let before = trio.sent.len();
            trio.run_for(3_000_000);
            let after = trio.sent[before..].iter();
            let after = after.filter(|(sender, _)| *sender == place);
            return after.map(|(_, message)| message.body.clone()).collect();
        }
        trio.run_for(50);
    }
    panic!("nothing was poisoned: {:?}", state(trio, place));
}

fn answer(trio: &Trio, token: u64) -> Option<Result<LogPosition, Failure>> {
    trio.answers.0.lock().unwrap().get(&token).cloned()
}

/// The highest entry that a node has acknowledged to anybody.
fn acknowledged(trio: &Trio, place: usize) -> Index {
    let acks = trio.sent.iter().filter(|(sender, _)| *sender == place);
    let acks = acks.filter_map(|(_, message)| match &message.body {
        Body::Ack(ack) => Some(ack.index),
        _ => None,
    });
    acks.max().unwrap_or_default()
}

/// The node comes back; everything it acknowledged, and everybody's commit, is there again.
fn check_return(trio: &mut Trio, place: usize, crash: Crash) {
    let acknowledged = acknowledged(trio, place);
    trio.nodes[place].crash(crash);
    trio.start(place);
    let last = trio.nodes[place].core(GROUP).unwrap().last();
    assert!(
        acknowledged <= last.index,
        "{acknowledged} was acknowledged, {last} is left"
    );
    trio.cut = None;
    trio.run_for(2_000_000);
    trio.assert_running();
    trio.put(100).unwrap();
    trio.run_for(500_000);
    let commits: Vec<LogPosition> = (0..3).map(|place| commit(trio, place)).collect();
    assert!(
        commits.iter().all(|commit| *commit == commits[0]),
        "{commits:?}"
    );
}

#[test]
fn a_leader_whose_log_fails_halts_answers_truthfully_and_the_others_go_on() {
    for (fault, flush_mode) in FAULTS {
        for cut in [false, true] {
            let mut trio = trio(flush_mode, true);
            let old = trio.leader().unwrap();
            let before = commit(&trio, old);
            // Nobody else gets it, so that it is for this disk alone to say whether it is there.
            trio.cut = cut.then_some(old);
            trio.nodes[old].inject(fault);
            let in_the_log = trio.tokens;
            trio.submit(old, 100).unwrap();
            let sent = poison(&mut trio, old);
            assert_eq!(sent, [], "{fault:?}: nothing leaves any more");

            let appended = answer(&trio, in_the_log).unwrap();
            match &appended {
                // The followers are a majority: they had it before this disk failed.
                Ok(at) => assert!(!cut && before.index < at.index),
                Err(failure) => assert_eq!(failure.outcome(), Outcome::MayYetCommit, "{failure}"),
            }
            assert!(!cut || appended.is_err(), "{fault:?}");
            let at_the_door = trio.submit(old, 100);
            assert_eq!(at_the_door, Err(Refused::Closed(Failure::Halted)));
            assert_eq!(Failure::Halted.outcome(), Outcome::NeverAppended);

            let new = (0..3).find(|place| {
                let core = trio.nodes[*place].core(GROUP).unwrap();
                *place != old && core.role() == Role::Leader
            });
            let new = new.unwrap_or_else(|| panic!("{fault:?}: nobody leads"));
            let token = trio.tokens;
            trio.submit(new, 100).unwrap();
            trio.run_for(500_000);
            let at = answer(&trio, token).unwrap().unwrap();
            assert!(before.term < at.term, "{fault:?}: {at}");
            if let Ok(first) = appended {
                assert!(first.index < at.index);
            }
            assert_eq!(trio.said(old, "Poisoned").len(), 1);
            check_return(&mut trio, old, Crash::Power);
        }
    }
}

#[test]
fn a_follower_whose_log_fails_acknowledges_nothing_more() {
    for (fault, flush_mode) in FAULTS {
        let mut trio = trio(flush_mode, true);
        let leader = trio.leader().unwrap();
        let follower = (leader + 1) % 3;
        let before = acknowledged(&trio, follower);
        trio.nodes[follower].inject(fault);
        let token = trio.tokens;
        trio.submit(leader, 100).unwrap();
        let sent = poison(&mut trio, follower);
        assert_eq!(sent, [], "{fault:?}: nothing leaves any more");
        assert_eq!(acknowledged(&trio, follower), before, "{fault:?}");
        assert!(
            answer(&trio, token).unwrap().is_ok(),
            "two of three are left"
        );
        assert_eq!(trio.leader(), Some(leader));
        check_return(&mut trio, follower, Crash::Power);
    }
}

#[test]
fn a_voter_whose_log_fails_gives_no_vote() {
    for (fault, flush_mode) in FAULTS {
        let mut trio = trio(flush_mode, true);
        let leader = trio.leader().unwrap();
        let voter = (leader + 1) % 3;
        let term = trio.nodes[leader].core(GROUP).unwrap().term();
        trio.nodes[leader].crash(Crash::Process);
        // The next that it writes is a term and a vote, its own or for the other.
        trio.nodes[voter].inject(fault);
        let sent = poison(&mut trio, voter);
        assert_eq!(sent, [], "{fault:?}: nothing leaves any more");
        let spoke = |(sender, message): &&(usize, logdrive_raft::Message)| {
            *sender == voter
                && message.term > term
                && match &message.body {
                    Body::VoteRequest(request) => !request.pre,
                    Body::VoteReply(reply) => !reply.pre && reply.granted,
                    _ => false,
                }
        };
        let votes: Vec<_> = trio.sent.iter().filter(spoke).collect();
        assert!(votes.is_empty(), "{fault:?}: {votes:?}");
        assert_eq!(trio.leader(), None, "{fault:?}: one vote is no majority");
        trio.start(leader);
        trio.run_for(2_000_000);
        assert!(trio.leader().is_some_and(|leader| leader != voter));
        check_return(&mut trio, voter, Crash::Power);
    }
}

/// After a flush has failed the kernel calls the pages clean, and the next flush says that all is well. What
/// reads well then may be in the page cache only.
#[test]
fn what_a_failed_flush_left_in_the_page_cache_is_not_believed() {
    for place_of_fault in 0..3 {
        let mut trio = trio(FlushMode::DrainedFsync, false);
        trio.nodes[place_of_fault].inject(Fault::FlushError);
        let leader = trio.leader().unwrap();
        trio.submit(leader, 100).unwrap();
        let sent = poison(&mut trio, place_of_fault);
        assert_eq!(sent, [], "nothing leaves any more");
        // The process alone dies: what was written reads well and may not be on the medium.
        check_return(&mut trio, place_of_fault, Crash::Process);
        let term: Term = trio.nodes[place_of_fault].core(GROUP).unwrap().term();
        // Now the power fails, everywhere: nothing that was acknowledged since may be gone.
        let committed = commit(&trio, place_of_fault);
        let acknowledged: Vec<Index> = (0..3).map(|place| acknowledged(&trio, place)).collect();
        for place in 0..3 {
            trio.nodes[place].crash(Crash::Power);
        }
        for (place, acknowledged) in acknowledged.into_iter().enumerate() {
            trio.start(place);
            let core = trio.nodes[place].core(GROUP).unwrap();
            assert!(acknowledged <= core.last().index);
            assert!(term <= core.term());
        }
        trio.run_for(2_000_000);
        trio.assert_running();
        let leader = trio.leader().unwrap();
        let held = trio.nodes[leader].core(GROUP).unwrap();
        assert_eq!(held.position(committed.index), Some(committed));
    }
}
