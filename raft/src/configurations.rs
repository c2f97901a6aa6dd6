//! The memberships that a log states: effective on append, undone by truncation (thesis §4.1).

use crate::ids::{Index, Replica};
use crate::membership::{Member, Membership};
use crate::quorum::Quorum;

/// The membership at the base and every later one, in log order.
#[derive(Clone, Debug)]
pub(crate) struct Configurations {
    base: Membership,
    above: Vec<(Index, Membership)>,
    /// Of the newest.
    quorum: Quorum,
}

impl Configurations {
    /// What a log was restored with.
    ///
    /// # Panics
    ///
    /// If the configurations are not in log order.
    #[must_use]
    pub(crate) fn new(base: Membership, above: Vec<(Index, Membership)>) -> Self {
        assert!(above.is_sorted_by(|a, b| a.0 < b.0));
        let mut configurations = Self {
            base,
            above,
            quorum: Quorum::default(),
        };
        configurations.quorum = Quorum::of(configurations.current());
        configurations
    }

    /// A configuration entry was appended.
    pub(crate) fn push(&mut self, index: Index, membership: Membership) {
        assert!(self.current_index().is_none_or(|newest| newest < index));
        self.above.push((index, membership));
        self.quorum = Quorum::of(self.current());
    }

    /// The log now ends at `last`. Says whether the membership has changed by that.
    pub(crate) fn truncate(&mut self, last: Index) -> bool {
        let before = self.above.len();
        self.above.retain(|(index, _)| *index <= last);
        let changed = self.above.len() < before;
        if changed {
            self.quorum = Quorum::of(self.current());
        }
        changed
    }

    /// The log now begins at `base`.
    pub(crate) fn cut(&mut self, base: Index) {
        let covered = self.above.partition_point(|(index, _)| *index <= base);
        if let Some((_, newest)) = self.above.drain(..covered).next_back() {
            self.base = newest;
        }
    }

    /// The log begins at a base with this membership, and goes on from there or not.
    pub(crate) fn install(&mut self, base: Index, membership: Membership, goes_on: bool) {
        if goes_on {
            self.above.retain(|(index, _)| base < *index);
        } else {
            self.above.clear();
        }
        self.base = membership;
        self.quorum = Quorum::of(self.current());
    }

    /// The one in effect: the newest, committed or not.
    #[must_use]
    pub(crate) fn current(&self) -> &Membership {
        self.above.last().map_or(&self.base, |(_, newest)| newest)
    }

    /// Where the one in effect was appended; `None`: it is that of the base.
    #[must_use]
    pub(crate) fn current_index(&self) -> Option<Index> {
        self.above.last().map(|(index, _)| *index)
    }

    /// The one in effect at `index`.
    #[must_use]
    pub(crate) fn at(&self, index: Index) -> &Membership {
        let later = self.above.partition_point(|(from, _)| *from <= index);
        match later.checked_sub(1) {
            Some(place) => &self.above[place].1,
            None => &self.base,
        }
    }

    /// The one in effect at `index`, and every later one.
    #[must_use]
    pub(crate) fn since(&self, index: Index) -> Vec<Membership> {
        let later = self.above.iter().filter(|(from, _)| index < *from);
        let at = std::iter::once(self.at(index));
        at.chain(later.map(|(_, later)| later)).cloned().collect()
    }

    /// The quorums of the one in effect.
    #[must_use]
    pub(crate) fn quorum(&self) -> &Quorum {
        &self.quorum
    }
}

/// Whether every quorum of `next` meets every quorum of `previous` (Raft §6): voters change only by way of
/// a joint configuration, whose outgoing half is what was there; learners change freely.
#[must_use]
pub(crate) fn may_follow(previous: &Membership, next: &Membership) -> bool {
    let same = |a: &[Member], b: &[Member]| {
        let sorted = |members: &[Member]| {
            let mut replicas: Vec<Replica> = members.iter().map(|member| member.replica).collect();
            replicas.sort_unstable();
            replicas
        };
        sorted(a) == sorted(b)
    };
    let joint_before = !previous.outgoing.is_empty();
    let joint_after = !next.outgoing.is_empty();
    let overlaps = match (joint_before, joint_after) {
        (false, true) => same(&previous.voters, &next.outgoing),
        (true, false) | (false, false) => same(&previous.voters, &next.voters),
        (true, true) => {
            same(&previous.voters, &next.voters) && same(&previous.outgoing, &next.outgoing)
        }
    };
    overlaps && !next.voters.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, NodeId};

    fn voters(ids: &[u64]) -> Membership {
        let member = |id: &u64| Member {
            replica: Replica {
                id: NodeId(*id),
                incarnation: Incarnation(1),
            },
            address: String::new(),
        };
        Membership::of_voters(ids.iter().map(member).collect())
    }

    fn joint(new: &[u64], old: &[u64]) -> Membership {
        Membership {
            outgoing: voters(old).voters,
            ..voters(new)
        }
    }

    #[test]
    fn the_membership_at_any_index_can_be_derived_and_truncation_undoes_it() {
        let above = vec![
            (Index(3), joint(&[2, 3], &[1, 2])),
            (Index(7), voters(&[2, 3])),
        ];
        let mut configurations = Configurations::new(voters(&[1, 2]), above);
        assert_eq!(*configurations.at(Index(2)), voters(&[1, 2]));
        assert_eq!(*configurations.at(Index(6)), joint(&[2, 3], &[1, 2]));
        assert_eq!(*configurations.at(Index(8)), voters(&[2, 3]));
        assert!(!configurations.truncate(Index(7)));
        assert!(configurations.truncate(Index(6)));
        assert_eq!(*configurations.current(), joint(&[2, 3], &[1, 2]));
        assert!(configurations.truncate(Index(1)));
        assert_eq!(configurations.current_index(), None);
        assert_eq!(*configurations.quorum(), Quorum::of(&voters(&[1, 2])));
    }

    #[test]
    fn a_cut_leaves_the_membership_at_every_index_that_is_left() {
        let above = vec![
            (Index(3), joint(&[2, 3], &[1, 2])),
            (Index(7), voters(&[2, 3])),
        ];
        let mut configurations = Configurations::new(voters(&[1, 2]), above);
        configurations.cut(Index(5));
        assert_eq!(*configurations.at(Index(5)), joint(&[2, 3], &[1, 2]));
        assert_eq!(*configurations.current(), voters(&[2, 3]));
        configurations.cut(Index(7));
        assert_eq!(configurations.current_index(), None);
        assert_eq!(*configurations.current(), voters(&[2, 3]));
    }

    #[test]
    fn what_a_snapshot_says_replaces_the_membership() {
        let above = vec![(Index(3), voters(&[1, 2, 3])), (Index(7), voters(&[2, 3]))];
        let mut configurations = Configurations::new(voters(&[1]), above);
        configurations.install(Index(5), voters(&[1, 2, 3]), true);
        assert_eq!(*configurations.current(), voters(&[2, 3]));
        assert_eq!(*configurations.at(Index(6)), voters(&[1, 2, 3]));
        configurations.install(Index(6), voters(&[4]), false);
        assert_eq!(*configurations.quorum(), Quorum::of(&voters(&[4])));
    }

    #[test]
    fn voters_change_only_by_way_of_a_joint_configuration() {
        assert!(!may_follow(&voters(&[1, 2]), &voters(&[1, 2, 3])));
        assert!(may_follow(&voters(&[1, 2]), &joint(&[1, 2, 3], &[1, 2])));
        assert!(!may_follow(&voters(&[1, 2]), &joint(&[1, 2, 3], &[1])));
        assert!(may_follow(&joint(&[1, 3], &[1, 2]), &voters(&[1, 3])));
        assert!(!may_follow(&joint(&[1, 3], &[1, 2]), &voters(&[1, 2])));
        assert!(!may_follow(&voters(&[1]), &voters(&[])));
    }
}
