//! The configurations in the logs of all groups: every entry on a path that holds one.

use std::collections::BTreeMap;

use logdrive_raft::{GroupId, Index, Membership};

/// Which entries hold a membership, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configurations {
    groups: BTreeMap<GroupId, Vec<(Index, Membership)>>,
}

impl Configurations {
    /// An entry that was appended holds this one.
    pub(crate) fn push(&mut self, group: GroupId, index: Index, membership: Membership) {
        self.groups
            .entry(group)
            .or_default()
            .push((index, membership));
    }

    /// An entry somewhere in the log holds this one, as it turns out.
    pub(crate) fn restore(&mut self, group: GroupId, index: Index, membership: Membership) {
        let all = self.groups.entry(group).or_default();
        match all.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(place) => all[place].1 = membership,
            Err(place) => all.insert(place, (index, membership)),
        }
    }

    /// The log of a group was cut: it ends here.
    pub(crate) fn cut(&mut self, group: GroupId, last: Index) {
        if let Some(configurations) = self.groups.get_mut(&group) {
            configurations.retain(|(index, _)| *index <= last);
        }
    }

    /// The newest one up to here that an entry holds.
    pub(crate) fn at(&self, group: GroupId, index: Index) -> Option<&Membership> {
        let configurations = self.groups.get(&group)?.iter();
        let mut until = configurations.rev().skip_while(|(at, _)| index < *at);
        until.next().map(|(_, membership)| membership)
    }

    /// Takes those of one group.
    pub(crate) fn remove(&mut self, group: GroupId) -> Vec<(Index, Membership)> {
        self.groups.remove(&group).unwrap_or_default()
    }
}
