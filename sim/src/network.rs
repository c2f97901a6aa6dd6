//! The network of a simulated cluster: directed links, each with dice of its own.
//!
//! A message takes its time, may be lost or repeated, waits behind others where the bandwidth is small or
//! the link is clogged, and is lost where the link is cut when it arrives. Streams keep their order where the
//! plan says so. When a connection ends, what was under way over it is gone, or late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use logdrive_raft::message::Lane;
use logdrive_raft::{Message, Micros, NodeId};
use logdrive_shard::PeerInput;

use crate::coverage::{Coverage, Mark};
use crate::dice::{Choice, Dice, Site, What};
use crate::lanes::{Lanes, Share};
use crate::plan::NetworkPlan;
use crate::step::Shape;

/// Links that are cut again within this time after they were mended flap.
pub(crate) const FLAP_US: u64 = 60_000;

/// All links between the nodes.
#[derive(Debug)]
pub(crate) struct Network {
    plan: NetworkPlan,
    nodes: u64,
    links: Vec<Link>,
    lanes: Lanes,
    /// What is under way: when it arrives, in which order it was sent, and where it is kept.
    due: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    packets: Vec<Option<Packet>>,
    vacant: Vec<usize>,
    sent: u64,
    healed: bool,
    /// How the links are cut, if they are.
    shape: Option<Shape>,
    /// When they were mended last.
    mended: Option<Micros>,
    /// They were cut again right after they had been mended.
    flaps: bool,
}

#[derive(Debug)]
struct Link {
    dice: Dice,
    cut: bool,
    clogged_until: Micros,
    /// When the last message of each lane arrives.
    last: [Micros; 4],
    /// When the link has carried what was sent.
    carried: Micros,
    /// The connection: what belongs to an earlier one is gone.
    connection: u64,
}

#[derive(Debug)]
struct Packet {
    message: Message,
    share: Option<Share>,
    connection: u64,
    /// It arrives a second time.
    repeated: bool,
}

/// What became of a message that was due.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It is here.
    Message(Message),
    /// It is lost, and why.
    Lost(Message, &'static str),
}

impl Network {
    pub(crate) fn new(plan: &NetworkPlan, nodes: u64, dice: impl Fn(Site) -> Dice) -> Self {
        let links = (0..nodes * nodes).map(|link| {
            let (from, to) = (NodeId(link / nodes + 1), NodeId(link % nodes + 1));
            Link {
                dice: dice(Site::Link(from, to)),
                cut: false,
                clogged_until: Micros(0),
                last: [Micros(0); 4],
                carried: Micros(0),
                connection: 0,
            }
        });
        Self {
            plan: plan.clone(),
            nodes,
            links: links.collect(),
            lanes: Lanes::new(usize::try_from(plan.lane_bytes_max).unwrap_or(usize::MAX)),
            due: BinaryHeap::new(),
            packets: Vec::new(),
            vacant: Vec::new(),
            sent: 0,
            healed: false,
            shape: None,
            mended: None,
            flaps: false,
        }
    }

    /// When the next message arrives.
    pub(crate) fn next_due(&self) -> Option<Micros> {
        self.due.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Puts a message on its way, or returns one that is lost, and why. What the sender has to hear is pushed to
    /// `told`.
    pub(crate) fn send(
        &mut self,
        now: Micros,
        message: Message,
        coverage: &mut Coverage,
        told: &mut Vec<PeerInput>,
    ) -> Option<(Message, &'static str)> {
        let (from, to) = (message.from.id, message.to);
        if to.0 == 0 || to.0 > self.nodes {
            return None;
        }
        let share = match self.lanes.take(&message) {
            Ok(share) => share,
            Err((session, first)) => {
                coverage.hit(Mark::LaneFull);
                told.push(PeerInput::LaneFull {
                    peer: to,
                    group: message.group,
                    session,
                    from: first,
                });
                told.extend(self.lanes.room(from, to));
                return Some((message, "its lane is full"));
            }
        };
        let at = self.at(from, to);
        let (loss, repeat) = if self.healed {
            (0, 0)
        } else {
            (self.plan.loss_ppm, self.plan.repeat_ppm)
        };
        let link = &mut self.links[at];
        if link.dice.chance(What::Lose, loss) {
            coverage.hit(Mark::Loss);
            if let Some(share) = share {
                self.lanes.leave(from, to, share);
                told.extend(self.lanes.room(from, to));
            }
            return Some((message, "on its way"));
        }
        let repeated = link.dice.chance(What::Repeat, repeat);
        let arrival = self.arrival(now, at, &message, coverage);
        let packet = Packet {
            connection: self.links[at].connection,
            message,
            share,
            repeated,
        };
        self.put(arrival, packet);
        None
    }

    /// Takes the next message that is due, if one is. Whoever hears that there is room again is pushed to
    /// `told`.
    pub(crate) fn arrive(
        &mut self,
        now: Micros,
        coverage: &mut Coverage,
        told: &mut Vec<(NodeId, PeerInput)>,
    ) -> Option<Arrival> {
        let Reverse((due, _, place)) = *self.due.peek()?;
        if now < due {
            return None;
        }
        self.due.pop();
        let mut packet = self.packets[place].take().expect("kept until it is due");
        self.vacant.push(place);
        let (from, to) = (packet.message.from.id, packet.message.to);
        let at = self.at(from, to);
        // What a clogged link holds back comes when it is free again.
        if now < self.links[at].clogged_until {
            coverage.hit(Mark::Clog);
            let until = self.links[at].clogged_until;
            self.put(until, packet);
            return self.arrive(now, coverage, told);
        }
        if let Some(share) = packet.share.take() {
            self.lanes.leave(from, to, share);
            told.extend(self.lanes.room(from, to).map(|room| (from, room)));
        }
        let link = &mut self.links[at];
        if link.cut {
            coverage.hit(Mark::Partition);
            if let Some(shape) = self.shape {
                coverage.hit(shape.mark());
            }
            if self.flaps {
                coverage.hit(Mark::Flapping);
            }
            return Some(Arrival::Lost(packet.message, "the link is cut"));
        }
        if packet.connection != link.connection {
            if !self.plan.late {
                return Some(Arrival::Lost(packet.message, "its connection has ended"));
            }
            coverage.hit(Mark::Late);
        }
        if packet.repeated {
            coverage.hit(Mark::Repeat);
            packet.repeated = false;
            let message = packet.message.clone();
            let again = self.arrival(now, at, &message, coverage);
            self.put(again, packet);
            return Some(Arrival::Message(message));
        }
        Some(Arrival::Message(packet.message))
    }

    /// Cuts the links that a shape cuts, with the circle beginning at `first`.
    pub(crate) fn cut(&mut self, now: Micros, shape: Shape, first: NodeId) {
        let is_soon = |mended: Micros| now.0 - mended.0 <= FLAP_US;
        self.flaps = self.mended.is_some_and(is_soon);
        self.shape = Some(shape);
        let nodes = self.nodes;
        let place = |node: u64| (node + nodes - (first.0 - 1) % nodes) % nodes;
        for (at, link) in (0..).zip(&mut self.links) {
            let (from, to) = (at / nodes, at % nodes);
            link.cut = from != to && shape.cuts(nodes, place(from), place(to));
        }
    }

    /// Mends every link.
    pub(crate) fn mend(&mut self, now: Micros) {
        self.shape = None;
        self.mended = Some(now);
        for link in &mut self.links {
            link.cut = false;
        }
    }

    /// Holds back what goes over a link until then.
    pub(crate) fn clog(&mut self, from: NodeId, to: NodeId, until: Micros) {
        let at = self.at(from, to);
        let link = &mut self.links[at];
        link.clogged_until = link.clogged_until.max(until);
    }

    /// The connections between two nodes end.
    pub(crate) fn disconnect(&mut self, one: NodeId, other: NodeId) {
        for (from, to) in [(one, other), (other, one)] {
            let at = self.at(from, to);
            let link = &mut self.links[at];
            link.connection += 1;
            link.last = [Micros(0); 4];
            link.carried = Micros(0);
            self.lanes.disconnect(from, to);
        }
    }

    /// From now on nothing goes wrong between the nodes of `core`, and nothing passes to or from any other.
    pub(crate) fn heal(&mut self, core: &[NodeId]) {
        self.healed = true;
        self.shape = None;
        self.flaps = false;
        let nodes = self.nodes;
        for (at, link) in (0..).zip(&mut self.links) {
            let inside = |place: u64| core.contains(&NodeId(place + 1));
            link.cut = !(inside(at / nodes) && inside(at % nodes));
            link.clogged_until = Micros(0);
        }
    }

    /// What came out otherwise than usual, if it is recorded.
    pub(crate) fn take_recorded(&mut self) -> Vec<Choice> {
        let links = self.links.iter_mut();
        links.flat_map(|link| link.dice.take_recorded()).collect()
    }

    fn arrival(
        &mut self,
        now: Micros,
        at: usize,
        message: &Message,
        coverage: &mut Coverage,
    ) -> Micros {
        let Self { plan, healed, .. } = self;
        let link = &mut self.links[at];
        let (usual, slow) = (plan.delay_us, plan.slow_us);
        let slow_ppm = if *healed { 0 } else { plan.slow_ppm };
        let delay = link.dice.decide(What::Delay, usual.0, |random| {
            if slow_ppm > 0 && random.u32(0..1_000_000) < slow_ppm {
                random.u64(slow.0..=slow.1)
            } else {
                random.u64(usual.0..=usual.1)
            }
        });
        if delay > usual.1 {
            coverage.hit(Mark::Delay);
        }
        let mut begins = now;
        let carrying = message.cost_bytes() as u64 * 1_000_000;
        if let Some(us) = carrying.checked_div(plan.bytes_per_s) {
            let waits = matches!(message.lane(), Lane::Append | Lane::Snapshot);
            if waits && now < link.carried {
                coverage.hit(Mark::Bandwidth);
            }
            // Streams have priorities: what is small overtakes the bytes of appends, which come so much later.
            link.carried = now.max(link.carried).after(us);
            begins = if waits { link.carried } else { now.after(us) };
        }
        let arrival = begins.after(delay);
        let lane = match message.lane() {
            Lane::Control => 0,
            Lane::Append => 1,
            Lane::Ack => 2,
            Lane::Snapshot => 3,
        };
        let last = &mut link.last[lane];
        if arrival < *last && !plan.in_order {
            coverage.hit(Mark::Reorder);
        }
        let arrival = if plan.in_order {
            arrival.max(*last)
        } else {
            arrival
        };
        *last = arrival.max(*last);
        arrival
    }

    fn put(&mut self, arrival: Micros, packet: Packet) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.packets.push(None);
            self.packets.len() - 1
        });
        self.packets[place] = Some(packet);
        self.sent += 1;
        self.due.push(Reverse((arrival, self.sent, place)));
    }

    fn at(&self, from: NodeId, to: NodeId) -> usize {
        usize::try_from((from.0 - 1) * self.nodes + to.0 - 1).expect("a cluster has few nodes")
    }
}
