//! What happens to a cluster and what is asked of it, each thing at its time.

use std::fmt;
use std::str::FromStr;

use logdrive_raft::{GroupId, Micros, NodeId};
use serde::{Deserialize, Serialize};

use crate::disk::{Crash, Rot};
use crate::files::FilesFault;

/// A step and when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timed {
    /// When.
    pub at: Micros,
    /// What.
    pub step: Step,
}

/// A node that a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This one.
    Node(NodeId),
    /// Whoever leads the group, if anybody does.
    Leader(GroupId),
}

/// Which links of a network are cut. `n` nodes stand in a circle that begins with the step's first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// The first is alone.
    Isolate,
    /// Two halves.
    Halves,
    /// Two halves, and the first sees both.
    Bridge,
    /// The first hears nobody, and is heard.
    Deaf,
    /// The first is heard by nobody, and hears.
    Mute,
    /// Each sees only its neighbours in a row.
    Chained,
    /// All see the first, and nobody else: only it has a quorum (Omni-Paxos, quorum loss).
    QuorumLoss,
    /// The first, which leads, is cut off, all others see the second, and nobody else: only the second may
    /// lead, and its log may be behind (Omni-Paxos, constrained election).
    Constrained,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client asks a group for something.
    Call(Call),
    /// A process or a machine stops, and starts again after a time. With `recovery`, the new process is
    /// killed when it has asked its disk for so many things, and starts once more.
    Crash {
        /// Which.
        target: Target,
        /// How.
        crash: Crash,
        /// When it starts again, in microseconds from now.
        down_us: u64,
        /// How far the next opening gets.
        recovery: Option<u64>,
    },
    /// All machines lose power.
    CrashAll {
        /// When they start again.
        down_us: u64,
    },
    /// Links are cut, and stay so until they are mended.
    Cut {
        /// Which.
        shape: Shape,
        /// Where the circle begins. Nothing is cut if the leader is meant and nobody leads.
        first: Target,
    },
    /// All links work again.
    Mend,
    /// A link holds everything back for a time.
    Clog {
        /// From here.
        from: NodeId,
        /// To there.
        to: NodeId,
        /// For so long.
        for_us: u64,
    },
    /// The connections between two nodes end, and new ones come up.
    Reset {
        /// One.
        one: NodeId,
        /// The other.
        other: NodeId,
        /// After so long.
        down_us: u64,
    },
    /// A node does nothing for a time; then what came meanwhile comes at once.
    Pause {
        /// Which.
        target: Target,
        /// For so long.
        for_us: u64,
    },
    /// A disk ends nothing for a time.
    Stall {
        /// Whose.
        target: Target,
        /// For so long.
        for_us: u64,
    },
    /// The next operation of a disk that this fault speaks of meets it.
    Fault {
        /// Whose disk.
        target: Target,
        /// Which fault.
        fault: DiskFault,
    },
    /// An operator asks for a snapshot.
    Snapshot {
        /// Of whose machine.
        target: Target,
        /// Of which group.
        group: GroupId,
    },
    /// The next node that comes to a moment of a snapshot's life stops there.
    Trap {
        /// Which moment.
        moment: Moment,
        /// How it stops.
        crash: Crash,
        /// After so many operations on its files, where the moment is one of the store's jobs.
        after: u64,
        /// When it starts again, in microseconds from then.
        down_us: u64,
    },
    /// An operation on a node's snapshots meets a fault.
    Files {
        /// Whose.
        target: Target,
        /// Which fault.
        fault: FilesFault,
        /// After so many operations that could have met it.
        after: u64,
    },
    /// A bit of a snapshot goes bad at rest.
    RotSnapshot {
        /// Whose.
        node: NodeId,
        /// A finished one, or one that is being received.
        finished: bool,
    },
    /// Something at rest goes bad.
    Rot {
        /// Whose disk.
        node: NodeId,
        /// How.
        rot: Rot,
    },
    /// The same of what the disk got last, over which the log has no mark yet.
    RotTail {
        /// Whose disk.
        node: NodeId,
        /// How.
        rot: Rot,
    },
    /// The disk is replaced by an empty one; its machine is off meanwhile.
    Wipe {
        /// Whose.
        node: NodeId,
        /// When it starts again.
        down_us: u64,
    },
    /// An image of the disk is taken, for [`Step::Restore`].
    Image {
        /// Whose.
        node: NodeId,
    },
    /// The disk holds the last image that was taken; its machine is off meanwhile.
    Restore {
        /// Whose.
        node: NodeId,
        /// When it starts again.
        down_us: u64,
    },
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which client.
    pub client: u64,
    /// Of which group.
    pub group: GroupId,
    /// The node it asks first.
    pub node: NodeId,
    /// Not before all that this client asked for earlier has been answered.
    pub closed: bool,
    /// How many proposals.
    pub count: u32,
    /// What they are about: the model makes proposals of it.
    pub draw: u64,
    /// About how many bytes each.
    pub bytes: u32,
}

/// A moment in the life of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// It is being written, read back and renamed.
    Writing,
    /// Parts of it are being stored that came from a peer.
    Storing,
    /// It has come whole and is flushed, read back and renamed.
    Checking,
    /// Older ones are being removed.
    Retiring,
    /// A part of it has been sent.
    Sending,
    /// A part of it has been asked for.
    Fetching,
    /// The log begins at it, and that is not durable yet.
    Basing,
    /// The machine is about to take it over.
    Following,
    /// The machine has just done so.
    Installed,
}

impl Moment {
    /// All of them.
    pub const ALL: [Moment; 9] = [
        Moment::Writing,
        Moment::Storing,
        Moment::Checking,
        Moment::Retiring,
        Moment::Sending,
        Moment::Fetching,
        Moment::Basing,
        Moment::Following,
        Moment::Installed,
    ];

    /// Whether it lies within a job of the store.
    #[must_use]
    pub fn is_job(self) -> bool {
        self <= Moment::Retiring
    }
}

const MOMENTS: [(Moment, &str); 9] = [
    (Moment::Writing, "writing"),
    (Moment::Storing, "storing"),
    (Moment::Checking, "checking"),
    (Moment::Retiring, "retiring"),
    (Moment::Sending, "sending"),
    (Moment::Fetching, "fetching"),
    (Moment::Basing, "basing"),
    (Moment::Following, "following"),
    (Moment::Installed, "installed"),
];

const FILES_FAULTS: [(FilesFault, &str); 5] = [
    (FilesFault::NoSpace, "no-space"),
    (FilesFault::WriteError, "write"),
    (FilesFault::FlushError, "flush"),
    (FilesFault::ReadError, "read"),
    (FilesFault::LostWrite, "lost-write"),
];

/// A fault of one operation of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFault {
    /// A read fails.
    Read,
    /// A write fails.
    Write,
    /// A write ends early.
    ShortWrite,
    /// A flush fails; what it was to cover stays readable and never becomes durable.
    Flush,
    /// A flush fails; what it was to cover is gone.
    FlushBack,
    /// A read ends early and says so.
    ShortRead,
    /// A flush says that it worked, did nothing, and the next one fails in its place.
    FlushLate,
    /// A flush says that it worked and did nothing.
    Lie,
    /// A write says that it worked and did nothing.
    LostWrite,
    /// A write lands elsewhere.
    Misdirect,
}

const SHAPES: [(Shape, &str); 8] = [
    (Shape::Isolate, "isolate"),
    (Shape::Halves, "halves"),
    (Shape::Bridge, "bridge"),
    (Shape::Deaf, "deaf"),
    (Shape::Mute, "mute"),
    (Shape::Chained, "chained"),
    (Shape::QuorumLoss, "quorum-loss"),
    (Shape::Constrained, "constrained"),
];

const ROTS: [(Rot, &str); 3] = [
    (Rot::Bit, "bit"),
    (Rot::Zeros, "zeros"),
    (Rot::Garbage, "garbage"),
];

const DISK_FAULTS: [(DiskFault, &str); 10] = [
    (DiskFault::Read, "read"),
    (DiskFault::Write, "write"),
    (DiskFault::ShortWrite, "short-write"),
    (DiskFault::Flush, "flush"),
    (DiskFault::FlushBack, "flush-back"),
    (DiskFault::ShortRead, "short-read"),
    (DiskFault::FlushLate, "flush-late"),
    (DiskFault::Lie, "lie"),
    (DiskFault::LostWrite, "lost-write"),
    (DiskFault::Misdirect, "misdirect"),
];

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 8] = {
        let mut all = [Shape::Isolate; 8];
        let mut at = 0;
        while at < all.len() {
            all[at] = SHAPES[at].0;
            at += 1;
        }
        all
    };

    /// Whether the link from one place in the circle of `nodes` to another is cut.
    #[must_use]
    pub fn cuts(self, nodes: u64, from: u64, to: u64) -> bool {
        let half = nodes.div_ceil(2);
        let apart = |a: u64, b: u64| (a < half) != (b < half);
        match self {
            Shape::Isolate => from == 0 || to == 0,
            Shape::Halves => apart(from, to),
            Shape::Bridge => from != 0 && to != 0 && apart(from, to),
            Shape::Deaf => to == 0,
            Shape::Mute => from == 0,
            Shape::Chained => from.abs_diff(to) > 1,
            Shape::QuorumLoss => from != 0 && to != 0,
            Shape::Constrained => from == 0 || to == 0 || (from != 1 && to != 1),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&SHAPES, self))
    }
}

impl fmt::Display for DiskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&DISK_FAULTS, self))
    }
}

fn name_of<T: PartialEq>(names: &[(T, &'static str)], wanted: &T) -> &'static str {
    let found = names.iter().find(|(value, _)| value == wanted);
    found.map_or("unnamed", |(_, name)| name)
}

fn named<T: Copy>(names: &[(T, &'static str)], wanted: &str) -> Option<T> {
    let found = names.iter().find(|(_, name)| *name == wanted);
    found.map(|(value, _)| *value)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => write!(f, "{node}"),
            Target::Leader(group) => write!(f, "leader:{group}"),
        }
    }
}

fn crash_of(name: &str) -> Option<Crash> {
    match name {
        "process" => Some(Crash::Process),
        "power" => Some(Crash::Power),
        _ => None,
    }
}

fn crash_name(crash: Crash) -> &'static str {
    match crash {
        Crash::Process => "process",
        Crash::Power => "power",
    }
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.at.0, self.step)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Call(call) => {
                let Call {
                    client,
                    group,
                    node,
                    closed,
                    count,
                    draw,
                    bytes,
                } = call;
                let how = if *closed { "closed" } else { "open" };
                write!(
                    f,
                    "call client={client} group={group} node={node} {how} count={count} \
                     bytes={bytes} draw={draw}"
                )
            }
            Step::Crash {
                target,
                crash,
                down_us,
                recovery,
            } => {
                let how = crash_name(*crash);
                write!(f, "crash {target} {how} down={down_us}")?;
                match recovery {
                    Some(asked) => write!(f, " recovery={asked}"),
                    None => Ok(()),
                }
            }
            Step::CrashAll { down_us } => write!(f, "crash-all down={down_us}"),
            Step::Cut { shape, first } => write!(f, "cut {shape} first={first}"),
            Step::Mend => f.write_str("mend"),
            Step::Clog { from, to, for_us } => write!(f, "clog {from}>{to} for={for_us}"),
            Step::Reset {
                one,
                other,
                down_us,
            } => write!(f, "reset {one}>{other} down={down_us}"),
            Step::Pause { target, for_us } => write!(f, "pause {target} for={for_us}"),
            Step::Stall { target, for_us } => write!(f, "stall {target} for={for_us}"),
            Step::Fault { target, fault } => write!(f, "fault {target} {fault}"),
            Step::Trap {
                moment,
                crash,
                after,
                down_us,
            } => {
                let (moment, how) = (name_of(&MOMENTS, moment), crash_name(*crash));
                write!(f, "trap {moment} {how} after={after} down={down_us}")
            }
            Step::Files {
                target,
                fault,
                after,
            } => {
                let fault = name_of(&FILES_FAULTS, fault);
                write!(f, "files {target} {fault} after={after}")
            }
            Step::RotSnapshot { node, finished } => {
                let what = if *finished { "finished" } else { "receiving" };
                write!(f, "rot-snapshot {node} {what}")
            }
            Step::Snapshot { target, group } => write!(f, "snapshot {target} group={group}"),
            Step::Rot { node, rot } => write!(f, "rot {node} {}", name_of(&ROTS, rot)),
            Step::RotTail { node, rot } => write!(f, "rot-tail {node} {}", name_of(&ROTS, rot)),
            Step::Wipe { node, down_us } => write!(f, "wipe {node} down={down_us}"),
            Step::Image { node } => write!(f, "image {node}"),
            Step::Restore { node, down_us } => write!(f, "restore {node} down={down_us}"),
        }
    }
}

/// A line of a script does not say a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a step, such as '120400 crash 2 power down=5000': '{0}'")]
pub struct NotAStep(String);

impl FromStr for Timed {
    type Err = NotAStep;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        parse(line).ok_or_else(|| NotAStep(line.to_owned()))
    }
}

impl TryFrom<String> for Timed {
    type Error = NotAStep;

    fn try_from(line: String) -> Result<Self, Self::Error> {
        line.parse()
    }
}

impl From<Timed> for String {
    fn from(timed: Timed) -> Self {
        timed.to_string()
    }
}

/// The words after a step's name: first those without a name of their own, then `name=value`.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn bare(&self, place: usize) -> Option<&'a str> {
        self.0
            .iter()
            .filter(|word| !word.contains('='))
            .nth(place)
            .copied()
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find_map(|word| {
            let (found, value) = word.split_once('=')?;
            (found == name).then_some(value)
        })
    }

    fn value(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn target(&self) -> Option<Target> {
        target_of(self.bare(0)?)
    }

    fn node(&self) -> Option<NodeId> {
        match self.target()? {
            Target::Node(node) => Some(node),
            Target::Leader(_) => None,
        }
    }

    fn link(&self) -> Option<(NodeId, NodeId)> {
        let (from, to) = self.bare(0)?.split_once('>')?;
        Some((NodeId(from.parse().ok()?), NodeId(to.parse().ok()?)))
    }
}

fn target_of(word: &str) -> Option<Target> {
    match word.strip_prefix("leader:") {
        Some(group) => Some(Target::Leader(GroupId(group.parse().ok()?))),
        None => Some(Target::Node(NodeId(word.parse().ok()?))),
    }
}

fn parse(line: &str) -> Option<Timed> {
    let mut words = line.split_whitespace();
    let at = Micros(words.next()?.parse().ok()?);
    let name = words.next()?;
    let words = Words(words.collect());
    let step = match name {
        "call" => Step::Call(Call {
            client: words.value("client")?,
            group: GroupId(words.value("group")?),
            node: NodeId(words.value("node")?),
            closed: match words.bare(0)? {
                "closed" => true,
                "open" => false,
                _ => return None,
            },
            count: words.value("count")?.try_into().ok()?,
            draw: words.value("draw")?,
            bytes: words.value("bytes")?.try_into().ok()?,
        }),
        "crash" => Step::Crash {
            target: words.target()?,
            crash: crash_of(words.bare(1)?)?,
            down_us: words.value("down")?,
            recovery: words.value("recovery"),
        },
        "crash-all" => Step::CrashAll {
            down_us: words.value("down")?,
        },
        "cut" => Step::Cut {
            shape: named(&SHAPES, words.bare(0)?)?,
            first: target_of(words.text("first")?)?,
        },
        "mend" => Step::Mend,
        "clog" => Step::Clog {
            from: words.link()?.0,
            to: words.link()?.1,
            for_us: words.value("for")?,
        },
        "reset" => Step::Reset {
            one: words.link()?.0,
            other: words.link()?.1,
            down_us: words.value("down")?,
        },
        "pause" => Step::Pause {
            target: words.target()?,
            for_us: words.value("for")?,
        },
        "stall" => Step::Stall {
            target: words.target()?,
            for_us: words.value("for")?,
        },
        "fault" => Step::Fault {
            target: words.target()?,
            fault: named(&DISK_FAULTS, words.bare(1)?)?,
        },
        "trap" => Step::Trap {
            moment: named(&MOMENTS, words.bare(0)?)?,
            crash: crash_of(words.bare(1)?)?,
            after: words.value("after")?,
            down_us: words.value("down")?,
        },
        "files" => Step::Files {
            target: words.target()?,
            fault: named(&FILES_FAULTS, words.bare(1)?)?,
            after: words.value("after")?,
        },
        "rot-snapshot" => Step::RotSnapshot {
            node: words.node()?,
            finished: match words.bare(1)? {
                "finished" => true,
                "receiving" => false,
                _ => return None,
            },
        },
        "snapshot" => Step::Snapshot {
            target: words.target()?,
            group: GroupId(words.value("group")?),
        },
        "rot" => Step::Rot {
            node: words.node()?,
            rot: named(&ROTS, words.bare(1)?)?,
        },
        "rot-tail" => Step::RotTail {
            node: words.node()?,
            rot: named(&ROTS, words.bare(1)?)?,
        },
        "wipe" => Step::Wipe {
            node: words.node()?,
            down_us: words.value("down")?,
        },
        "image" => Step::Image {
            node: words.node()?,
        },
        "restore" => Step::Restore {
            node: words.node()?,
            down_us: words.value("down")?,
        },
        _ => return None,
    };
    Some(Timed { at, step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_written_down_and_read_again() {
        let lines = [
            "1 call client=3 group=1 node=2 closed count=4 bytes=100 draw=77",
            "2 call client=3 group=1 node=2 open count=1 bytes=0 draw=0",
            "3 crash 2 power down=5000",
            "4 crash leader:1 process down=5000 recovery=7",
            "5 crash-all down=10",
            "6 cut quorum-loss first=2",
            "7 cut constrained first=leader:2",
            "7 mend",
            "8 clog 1>2 for=100",
            "9 reset 1>2 down=100",
            "10 pause leader:1 for=100",
            "11 stall 3 for=100",
            "12 fault 3 flush-back",
            "13 rot 3 garbage",
            "13 snapshot leader:1 group=2",
            "13 trap checking power after=7 down=100",
            "13 files leader:1 no-space after=3",
            "13 rot-snapshot 2 receiving",
            "14 wipe 3 down=9",
            "15 image 3",
            "16 restore 3 down=9",
        ];
        for line in lines {
            assert_eq!(line.parse::<Timed>().unwrap().to_string(), line);
        }
        for line in [
            "",
            "1",
            "x mend",
            "1 crash 2 slowly down=1",
            "1 cut star first=1",
        ] {
            assert!(line.parse::<Timed>().is_err(), "{line}");
        }
    }

    #[test]
    fn every_shape_leaves_what_its_name_says() {
        let reachable = |shape: Shape, node: u64| {
            let both = |other: &u64| !shape.cuts(5, node, *other) && !shape.cuts(5, *other, node);
            (0..5).filter(|other| *other != node).filter(both).count()
        };
        let seen: Vec<Vec<usize>> = Shape::ALL
            .iter()
            .map(|shape| (0..5).map(|node| reachable(*shape, node)).collect())
            .collect();
        assert_eq!(
            seen,
            [
                [0, 3, 3, 3, 3],
                [2, 2, 2, 1, 1],
                [4, 2, 2, 2, 2],
                [0, 3, 3, 3, 3],
                [0, 3, 3, 3, 3],
                [1, 2, 2, 2, 1],
                [4, 1, 1, 1, 1],
                [0, 3, 1, 1, 1],
            ]
        );
    }
}
