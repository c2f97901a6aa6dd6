//! What clients do to a cluster, and what they are told.

use bytes::Bytes;
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use logdrive_raft::{GroupId, LogPosition, Micros, NodeId};
use logdrive_shard::{Failure, Refused};

use crate::coverage::Mark;
use crate::model::Model;
use crate::oracle::{Rule, Violation};
use crate::step::Call;

use super::clients::{Follow, Try};
use super::{Checked, Cluster, Due, place, settle_us};

impl<M: Model> Cluster<'_, M> {
    pub(super) fn call(&mut self, call: Call) -> Checked {
        match self.clients.ask(call) {
            Some(call) => self.begin(call),
            None => Ok(()),
        }
    }

    fn begin(&mut self, call: Call) -> Checked {
        let plan = &self.plan;
        let end = Micros(plan.faulty_us + plan.healthy_us);
        let quiet = Micros(end.0 - plan.quiet_us);
        let settled = Micros(plan.faulty_us + settle_us(plan));
        let rests = plan.client.rests && Micros(plan.faulty_us) <= self.now && self.now < settled;
        if quiet <= self.now || rests {
            return Ok(());
        }
        // A healed core may be just a quorum, and the last of it have to fetch before anything is committed.
        let timeout_us = if settled <= self.now {
            end.0 - self.now.0 - 1
        } else {
            plan.client.timeout_us
        };
        let (attempt, number, deadline) =
            self.clients.begin(self.now, call, timeout_us, self.model);
        self.schedule(deadline, Due::Deadline(number));
        self.hand_in(attempt)
    }

    pub(super) fn hand_in(&mut self, attempt: Try) -> Checked {
        let Some(group) = self.clients.is_open(self.now, attempt) else {
            return Ok(());
        };
        let words = [attempt.node.0, attempt.first, u64::from(attempt.count)];
        self.trace.event(self.now, 8, words, || {
            let Try {
                first, count, node, ..
            } = attempt;
            format!("clients ask node {node} for {first}+{count} of group {group}")
        });
        let at = place(attempt.node);
        let refused = match self.nodes[at].door(group) {
            None => Some((None, "it is down".to_owned())),
            Some(door) => {
                let (payloads, sink, token) = self.clients.hand_in(attempt);
                let longest = payloads.iter().map(Bytes::len).max().unwrap_or(0);
                let empty = payloads.iter().filter(|payload| payload.is_empty()).count();
                match door.submit(payloads, &sink, token) {
                    Ok(()) => {
                        self.coverage.add(Mark::EmptyPayload, empty as u64);
                        if longest == door.payload_bytes_max() {
                            self.coverage.hit(Mark::LargePayload);
                        }
                        if longest == ENTRY_PAYLOAD_BYTES_MAX {
                            self.coverage.hit(Mark::LargestPayload);
                        }
                        None
                    }
                    Err(refused) => {
                        self.clients.not_taken();
                        let busy = matches!(refused, Refused::Busy { .. });
                        self.coverage.add(Mark::Busy, u64::from(busy));
                        let hint = match &refused {
                            Refused::Closed(Failure::NotLeader { leader }) => *leader,
                            _ => None,
                        };
                        Some((hint, refused.to_string()))
                    }
                }
            }
        };
        match refused {
            None => self.nodes[at].poke(),
            Some((hint, why)) => {
                self.trace
                    .event(self.now, 11, words, || format!("  not taken: {why}"));
                let follow = self.clients.refused(attempt, hint);
                self.follow(vec![follow])?;
            }
        }
        Ok(())
    }

    pub(super) fn take_answers(&mut self) -> Checked {
        let mut follow = std::mem::take(&mut self.follow);
        self.clients.take(self.now, &mut follow);
        if let Some(attempt) = self.clients.answered_twice() {
            let text = format!("more answers than proposals have come to {attempt:?}");
            return Err(Violation::new(Rule::AppliedTwice, text));
        }
        if follow.is_empty() {
            self.follow = follow;
            return Ok(());
        }
        self.follow(follow)
    }

    pub(super) fn follow(&mut self, mut follow: Vec<Follow>) -> Checked {
        for what in follow.drain(..) {
            match what {
                Follow::Next(call) => self.begin(call)?,
                Follow::Unknown => {
                    self.trace.count(self.now, 0, 1);
                    self.coverage.hit(Mark::MayYetCommit);
                }
                Follow::Acked {
                    group,
                    at,
                    slot,
                    first,
                    count,
                } => self.acknowledged(group, at, slot, first, count)?,
                Follow::Retry {
                    first,
                    count,
                    call,
                    asked,
                    hint,
                } => self.retry(first, count, call, asked, hint)?,
            }
        }
        if self.follow.capacity() < follow.capacity() {
            self.follow = follow;
        }
        Ok(())
    }

    fn acknowledged(
        &mut self,
        group: GroupId,
        at: LogPosition,
        slot: u32,
        first: u64,
        count: u32,
    ) -> Checked {
        self.acked += u64::from(count);
        self.trace
            .event(self.now, 9, [first, at.index.0, u64::from(slot)], || {
                format!("clients hear that {first}+{count} lie at {at}, slot {slot}")
            });
        if self.oracle.committed_at(group, at.index) == Some(at) || self.plan.beyond_limit {
            return Ok(());
        }
        Err(Violation::new(
            Rule::AckedDurability,
            format!(
                "a client is told that {first}+{count} of group {group} lie at {at}, where {:?} is committed",
                self.oracle.committed_at(group, at.index)
            ),
        ))
    }

    fn retry(
        &mut self,
        first: u64,
        count: u32,
        call: usize,
        asked: NodeId,
        hint: Option<NodeId>,
    ) -> Checked {
        self.coverage.hit(Mark::NeverAppended);
        let at = self.now.after(self.plan.client.retry_us);
        let node = hint
            .filter(|hint| *hint != asked && hint.0 >= 1 && hint.0 <= self.plan.nodes)
            .unwrap_or(NodeId(asked.0 % self.plan.nodes + 1));
        let attempt = Try {
            first,
            count,
            node,
            call,
        };
        if self.clients.is_open(at, attempt).is_some() {
            self.schedule(
                at,
                Due::Retry {
                    first,
                    count,
                    node,
                    call,
                },
            );
            return Ok(());
        }
        let mut follow = Vec::new();
        self.clients
            .give_up(self.now, first, count, true, &mut follow);
        self.follow(follow)
    }
}
