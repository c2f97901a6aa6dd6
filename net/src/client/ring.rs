//! What has been sent on one connection and has no answer yet.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::batch::Part;

/// Parts in the order of their ids. Answers may come in any order, and mostly come in this one.
#[derive(Default)]
pub(super) struct Ring {
    sent: VecDeque<Sent>,
    next_id: u64,
    /// No deadline is earlier than this.
    earliest: Option<Instant>,
}

struct Sent {
    first_id: u64,
    part: Part,
}

impl Sent {
    fn end_id(&self) -> u64 {
        self.first_id + u64::from(self.part.count)
    }
}

impl Ring {
    /// The id that the next proposal gets.
    pub(super) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Whether everything has its answer.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Gives a part the next ids.
    pub(super) fn push(&mut self, part: Part) {
        let first_id = self.next_id;
        self.next_id += u64::from(part.count);
        let deadline = part.deadline();
        self.earliest = Some(
            self.earliest
                .map_or(deadline, |earliest| earliest.min(deadline)),
        );
        self.sent.push_back(Sent { first_id, part });
    }

    /// Takes out what of the ids from `first_id` on is still open: the part, and how far behind `first_id`
    /// it begins. What is no longer open, because its deadline has passed, is left out.
    pub(super) fn take(&mut self, first_id: u64, count: u32, mut each: impl FnMut(Part, u32)) {
        let end_id = first_id.saturating_add(u64::from(count));
        let mut at = self.sent.partition_point(|sent| sent.end_id() <= first_id);
        while let Some(sent) = self.sent.get_mut(at) {
            if sent.first_id >= end_id {
                break;
            }
            let skipped = first_id.saturating_sub(sent.first_id);
            if skipped > 0 {
                // Answered from the middle on: what is before stays, as a part of its own.
                let skipped = u32::try_from(skipped).expect("within a part");
                let front = sent.part.split_front(skipped);
                let front_id = sent.first_id;
                sent.first_id = first_id;
                self.sent.insert(
                    at,
                    Sent {
                        first_id: front_id,
                        part: front,
                    },
                );
                at += 1;
                continue;
            }
            let taken = (end_id - sent.first_id).min(u64::from(sent.part.count));
            let taken = u32::try_from(taken).expect("within a part");
            if taken == 0 {
                at += 1;
                continue;
            }
            let behind = u32::try_from(sent.first_id - first_id).expect("within the answer");
            let part = sent.part.split_front(taken);
            sent.first_id += u64::from(taken);
            if sent.part.count > 0 {
                each(part, behind);
                break;
            }
            // The front goes at once, others when they are the front: taking from the middle would move all.
            if at == 0 {
                self.sent.pop_front();
            } else {
                at += 1;
            }
            each(part, behind);
        }
        while self.sent.front().is_some_and(|sent| sent.part.count == 0) {
            self.sent.pop_front();
        }
    }

    /// Takes out what has passed its deadline.
    pub(super) fn expire(&mut self, now: Instant, mut each: impl FnMut(Part)) {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return;
        }
        self.earliest = None;
        let mut earliest: Option<Instant> = None;
        self.sent.retain_mut(|sent| {
            let deadline = sent.part.deadline();
            if sent.part.count > 0 && deadline <= now {
                let count = sent.part.count;
                each(sent.part.split_front(count));
            }
            if sent.part.count > 0 {
                earliest = Some(earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            }
            sent.part.count > 0
        });
        self.earliest = earliest;
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Part> + '_ {
        self.earliest = None;
        self.sent
            .drain(..)
            .map(|sent| sent.part)
            .filter(|part| part.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use logdrive_raft::GroupId;
    use proptest::prelude::*;

    use super::*;
    use crate::client::batch::{Batch, Reply};

    fn part(token: u64, count: usize, deadline: Instant) -> Part {
        let proposals = (0..count).map(|_| &b"x"[..]);
        let batch = Batch::of(token, GroupId(1), deadline, proposals).unwrap();
        Part::whole(batch, Reply::Sink)
    }

    #[test]
    fn what_has_passed_its_deadline_is_taken_out_once() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut ring = Ring::default();
        ring.push(part(1, 3, later));
        ring.push(part(2, 2, now));
        ring.push(part(3, 1, later));
        let mut expired = Vec::new();
        ring.expire(now, |part| expired.push((part.token(), part.count)));
        assert_eq!(expired, [(2, 2)]);
        ring.expire(now, |part| panic!("{}", part.token()));
        // Its late answer meets nobody; the others' do.
        let mut taken = Vec::new();
        ring.take(0, 6, |part, behind| {
            taken.push((part.token(), part.first, part.count, behind))
        });
        assert_eq!(taken, [(1, 0, 3, 0), (3, 0, 1, 5)]);
        assert_eq!(ring.drain().count(), 0);
    }

    proptest! {
        #[test]
        fn every_id_is_taken_once_whatever_the_order(
            counts in proptest::collection::vec(1_usize..6, 1..20),
            answers in proptest::collection::vec((0_u64..70, 1_u32..9), 0..60),
        ) {
            let deadline = Instant::now();
            let mut ring = Ring::default();
            let mut open = Vec::new();
            for (token, count) in (0..).zip(&counts) {
                ring.push(part(token, *count, deadline));
                open.extend((0..*count).map(|at| Some((token, u32::try_from(at).unwrap()))));
            }
            for (first_id, count) in answers {
                let mut taken = Vec::new();
                ring.take(first_id, count, |part, behind| {
                    for at in 0..part.count {
                        let id = first_id + u64::from(behind + at);
                        taken.push((id, (part.token(), part.first + at)));
                    }
                });
                let mut wanted = Vec::new();
                for id in first_id..first_id + u64::from(count) {
                    if let Some(slot) = open.get_mut(id as usize)
                        && let Some(proposal) = slot.take()
                    {
                        wanted.push((id, proposal));
                    }
                }
                prop_assert_eq!(taken, wanted);
            }
            let left: Vec<_> = ring
                .drain()
                .flat_map(|part| (0..part.count).map(move |at| (part.token(), part.first + at)))
                .collect();
            prop_assert_eq!(left, open.into_iter().flatten().collect::<Vec<_>>());
        }
    }
}
