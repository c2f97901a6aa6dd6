//! What the names of directories say.

use logdrive_raft::{GroupId, Index, SnapshotId};

const REMOVING: &str = "removing-";
const WRITING: &str = "writing-g";
const RECEIVING: &str = "receiving-g";

/// A directory of the store, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A snapshot that is whole.
    Finished(Place),
    /// One that was whole and goes.
    Removing(Place),
    /// One that is being written.
    Writing(GroupId),
    /// One that is being received.
    Receiving(GroupId),
}

/// Which snapshot, and where in which log. A later one of a group compares higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) group: GroupId,
    pub(super) index: Index,
    pub(super) id: SnapshotId,
}

impl Named {
    /// `None`: it is not ours.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let named = if let Some(rest) = name.strip_prefix(REMOVING) {
            Self::Removing(Place::parse(rest)?)
        } else if let Some(rest) = name.strip_prefix(WRITING) {
            Self::Writing(GroupId(rest.parse().ok()?))
        } else if let Some(rest) = name.strip_prefix(RECEIVING) {
            Self::Receiving(GroupId(rest.parse().ok()?))
        } else {
            Self::Finished(Place::parse(name)?)
        };
        // Whatever has two spellings was not made by us.
        (named.name() == name).then_some(named)
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Finished(place) => place.name(),
            Self::Removing(place) => format!("{REMOVING}{}", place.name()),
            Self::Writing(group) => format!("{WRITING}{group}"),
            Self::Receiving(group) => format!("{RECEIVING}{group}"),
        }
    }
}

impl Place {
    fn name(self) -> String {
        format!("g{}-{:020}-{}", self.group, self.index.0, self.id)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix('g')?.split('-');
        let group = parts.next()?.parse().ok()?;
        let index = parts.next()?.parse().ok()?;
        let id = u128::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self {
            group: GroupId(group),
            index: Index(index),
            id: SnapshotId(id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::files::check_name;

    #[test]
    fn names_are_read_as_they_are_written_and_in_no_other_way() {
        let place = Place {
            group: GroupId(u64::MAX),
            index: Index(u64::MAX),
            id: SnapshotId(7),
        };
        let all = [
            Named::Finished(place),
            Named::Removing(place),
            Named::Writing(place.group),
            Named::Receiving(GroupId(0)),
        ];
        for named in all {
            let name = named.name();
            assert_eq!(Named::parse(&name), Some(named));
            check_name(&name).unwrap();
            assert_eq!(Named::parse(&format!("{name}0")), None, "{name}0");
            assert_eq!(Named::parse(&format!("{name}-")), None);
            assert_eq!(Named::parse(&name.to_uppercase()), None);
        }
        for other in [
            "",
            "g",
            "g1-2-3",
            "writing-g01",
            "writing-g+1",
            "receiving-",
            "lost+found",
        ] {
            assert_eq!(Named::parse(other), None, "{other}");
        }
    }
}
