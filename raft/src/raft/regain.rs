//! Regaining entries that a replica had and cannot read: they come back on its own disk, and nobody is asked about them.
//!
//! Such a replica begins with what lies before the first of them. It is guarded through the end of what lies behind, so
//! it acknowledges and applies nothing there and does not campaign. What comes back is what it had: the chain says so.

use super::{Raft, RoleState};
use crate::ids::LogPosition;
use crate::io::Regained;

impl Raft {
    /// Whether entries that this replica had and cannot read may yet come back.
    #[must_use]
    pub fn is_regaining(&self) -> bool {
        self.regaining
    }

    /// Whether [`Input::Regained`](crate::io::Input::Regained) would be taken here: nothing else is on its way to the disk
    /// that says where the log goes.
    #[must_use]
    pub fn may_regain(&self, after: &LogPosition) -> bool {
        let follows = matches!(self.role, RoleState::Follower(_)) && self.halted.is_none();
        self.regaining && follows && self.outbox.is_idle() && self.log.last() == *after
    }

    /// The log goes on with entries that it had. A leader has been asked nothing meanwhile, so it is told now where to
    /// go on.
    pub(super) fn on_regained(&mut self, regained: Regained) {
        if !self.may_regain(&regained.after) {
            return;
        }
        self.log.restore(&regained.entries);
        for (index, membership) in regained.configurations {
            self.configurations.push(index, membership);
        }
        self.regaining = regained.more;
        self.release_guard();
        if !self.regaining && !self.asks_leader {
            self.hint_again();
        }
    }

    /// Nobody who was asked has them: whoever leads may send them. They are taken all the same if they come back first.
    pub(super) fn on_not_regained(&mut self) {
        self.asks_leader = true;
        if self.regaining && self.halted.is_none() {
            self.hint_again();
        }
    }

    /// Whether a leader is not told what is missing yet, for it may come back without it.
    pub(super) fn waits_to_regain(&self) -> bool {
        self.regaining && !self.asks_leader
    }
}
