//! Where proposals of which group go.

use std::collections::BTreeMap;
use std::sync::Arc;

use logdrive_raft::GroupId;

use super::session::Session;

/// Where proposals of which group go.
pub(super) struct Routes {
    pub(super) sessions: Vec<Arc<Session>>,
    pub(super) by_group: BTreeMap<GroupId, usize>,
    /// Where those of a group go of which nothing is known.
    pub(super) start: usize,
}

impl Routes {
    pub(super) fn of(&self, group: GroupId) -> usize {
        self.by_group.get(&group).copied().unwrap_or(self.start)
    }

    /// The next after `number`, in turn, that is worth trying; the very next if none is.
    pub(super) fn usable_after(&self, number: usize) -> usize {
        let count = self.sessions.len();
        (1..=count)
            .map(|step| (number + step) % count)
            .find(|next| self.sessions[*next].is_usable())
            .unwrap_or((number + 1) % count)
    }

    /// Of the sessions whose address was learnt and on which nothing is on its way, the one that has been of
    /// no use for the longest time.
    pub(super) fn least_useful(&self) -> Option<usize> {
        let sessions = self.sessions.iter().enumerate();
        sessions
            .filter(|(_, session)| session.is_learnt() && session.is_idle())
            .min_by_key(|(_, session)| session.last_use())
            .map(|(number, _)| number)
    }
}
