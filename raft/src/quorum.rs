//! Majorities, counted by (number, incarnation), in one configuration or in both halves of a joint one.
//!
//! Whoever shares a member's number but not its incarnation counts for nothing: it is another directory.

use crate::ids::{Index, Replica};
use crate::limits::MEMBERS_MAX;
use crate::membership::{Member, Membership};

/// Who is counted. Precomputed from a membership, because every ack asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    incoming: Vec<Replica>,
    /// Not empty only while a change is under way (Raft §6): then both halves must agree.
    outgoing: Vec<Replica>,
}

impl Quorum {
    /// The quorums of a membership.
    #[must_use]
    pub fn of(membership: &Membership) -> Self {
        let replicas = |members: &[Member]| {
            let mut replicas: Vec<Replica> = members.iter().map(|member| member.replica).collect();
            replicas.sort_unstable();
            replicas.dedup();
            replicas
        };
        Self {
            incoming: replicas(&membership.voters),
            outgoing: replicas(&membership.outgoing),
        }
    }

    /// Whether those for whom `yes` holds are a majority of every half. Nobody is a majority of nobody.
    #[must_use]
    pub fn agrees(&self, yes: impl Fn(Replica) -> bool) -> bool {
        let majority = |half: &[Replica]| {
            let count = half.iter().filter(|replica| yes(**replica)).count();
            count > half.len() / 2
        };
        majority(&self.incoming) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }

    /// Whether those for whom `yes` holds are a majority of one half at least.
    #[must_use]
    pub fn half_agrees(&self, yes: impl Fn(Replica) -> bool) -> bool {
        let majority = |half: &[Replica]| {
            let count = half.iter().filter(|replica| yes(**replica)).count();
            count > half.len() / 2
        };
        majority(&self.incoming) || majority(&self.outgoing)
    }

    /// The highest index that a majority of every half has reached, given what each has.
    #[must_use]
    pub fn reached(&self, has: impl Fn(Replica) -> Index) -> Index {
        let half = |replicas: &[Replica]| {
            let mut indexes = [Index(0); MEMBERS_MAX];
            let count = replicas.len().min(MEMBERS_MAX);
            for (index, replica) in indexes.iter_mut().zip(replicas) {
                *index = has(*replica);
            }
            let indexes = &mut indexes[..count];
            indexes.sort_unstable_by(|a, b| b.cmp(a));
            // With n voters, the index in place n/2 of the descending order is held by n/2 + 1 of them.
            indexes.get(count / 2).copied().unwrap_or_default()
        };
        let incoming = half(&self.incoming);
        if self.outgoing.is_empty() {
            incoming
        } else {
            incoming.min(half(&self.outgoing))
        }
    }

    /// Whether `replica` is counted in either half.
    #[must_use]
    pub fn counts(&self, replica: Replica) -> bool {
        self.incoming.binary_search(&replica).is_ok()
            || self.outgoing.binary_search(&replica).is_ok()
    }

    /// Whether `replica` alone decides.
    #[must_use]
    pub fn is_only(&self, replica: Replica) -> bool {
        self.agrees(|other| other == replica)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, NodeId};

    fn replica(id: u64) -> Replica {
        Replica {
            id: NodeId(id),
            incarnation: Incarnation(u128::from(id) * 7),
        }
    }

    fn members(ids: &[u64]) -> Vec<Member> {
        let member = |id: &u64| Member {
            replica: replica(*id),
            address: String::new(),
        };
        ids.iter().map(member).collect()
    }

    #[test]
    fn a_majority_is_more_than_half_and_nobody_is_none() {
        let quorum = Quorum::of(&Membership::of_voters(members(&[1, 2, 3, 4])));
        assert!(!quorum.agrees(|replica| replica.id.0 <= 2));
        assert!(quorum.agrees(|replica| replica.id.0 <= 3));
        assert!(!Quorum::default().agrees(|_| true));
        assert_eq!(Quorum::default().reached(|_| Index(9)), Index(0));
    }

    #[test]
    fn the_index_reached_is_that_of_the_slowest_of_the_fastest_majority() {
        let three = Quorum::of(&Membership::of_voters(members(&[1, 2, 3])));
        assert_eq!(three.reached(|replica| Index(replica.id.0 * 10)), Index(20));
        let four = Quorum::of(&Membership::of_voters(members(&[1, 2, 3, 4])));
        assert_eq!(four.reached(|replica| Index(replica.id.0 * 10)), Index(20));
    }

    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let membership = Membership {
            outgoing: members(&[1, 2, 3]),
            ..Membership::of_voters(members(&[3, 4, 5]))
        };
        let quorum = Quorum::of(&membership);
        assert!(!quorum.agrees(|replica| replica.id.0 <= 3));
        assert!(!quorum.agrees(|replica| replica.id.0 >= 3));
        assert!(quorum.agrees(|replica| [2, 3, 4].contains(&replica.id.0)));
        let has = |other: Replica| Index(if other.id.0 >= 3 { 9 } else { 4 });
        assert_eq!(quorum.reached(has), Index(4));
    }

    #[test]
    fn another_incarnation_of_a_member_is_not_counted() {
        let quorum = Quorum::of(&Membership::of_voters(members(&[1])));
        let wiped = Replica {
            incarnation: Incarnation(1),
            ..replica(1)
        };
        assert!(quorum.counts(replica(1)));
        assert!(!quorum.counts(wiped));
        assert!(!quorum.agrees(|other| other == wiped));
    }
}
