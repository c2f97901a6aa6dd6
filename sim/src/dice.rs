//! Where the decisions of a run come from: drawn from the seed, or read from a script.
//!
//! Each component that something can happen to (a link, a disk, a node) has dice of its own, and each
//! decision a name and a number there. Every decision has a usual outcome. What came out otherwise can be
//! recorded, and played again without drawing anything: a run shrinks by leaving decisions out, which then
//! have their usual outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use fastrand::Rng;
use logdrive_raft::NodeId;
use serde::{Deserialize, Serialize};

/// Whom a decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The way from one node to another.
    Link(NodeId, NodeId),
    /// A node's disk.
    Disk(NodeId),
    /// A node besides its disk.
    Node(NodeId),
}

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum What {
    /// How long something takes, in microseconds.
    Delay,
    /// Whether a message is lost.
    Lose,
    /// Whether a message is delivered twice.
    Repeat,
    /// Which fault an operation of a disk meets; 0 for none.
    Fault,
    /// How much of an operation that fails is done, in blocks.
    Part,
    /// What becomes of an unflushed block at a power cut: 0 lost, 1 kept, 2 torn, from 3 on an earlier write.
    Block,
    /// Which sectors of a torn block are new, a bit each.
    Sectors,
    /// Whether a block in flight lands after its process has died.
    Land,
    /// How many blocks more of a file that was made longer are left by a power cut.
    Length,
    /// Whether a new file whose name was not flushed is left by a power cut.
    Name,
    /// Where in all blocks of a disk something strikes.
    Place,
    /// What becomes of a block that rots.
    Damage,
}

impl What {
    const ALL: [What; 12] = [
        What::Delay,
        What::Lose,
        What::Repeat,
        What::Fault,
        What::Part,
        What::Block,
        What::Sectors,
        What::Land,
        What::Length,
        What::Name,
        What::Place,
        What::Damage,
    ];

    fn name(self) -> &'static str {
        match self {
            What::Delay => "delay",
            What::Lose => "lose",
            What::Repeat => "repeat",
            What::Fault => "fault",
            What::Part => "part",
            What::Block => "block",
            What::Sectors => "sectors",
            What::Land => "land",
            What::Length => "length",
            What::Name => "name",
            What::Place => "place",
            What::Damage => "damage",
        }
    }
}

/// A decision with another outcome than the usual one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Choice {
    /// About whom.
    pub site: Site,
    /// About what.
    pub what: What,
    /// The how many-th decision of this kind at this site, from 0.
    pub number: u64,
    /// The outcome.
    pub value: u64,
}

/// The decisions about one component.
#[derive(Clone, Debug)]
pub struct Dice {
    site: Site,
    taken: [u64; What::ALL.len()],
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Drawn(Rng),
    Recorded(Rng, Vec<Choice>),
    Played(BTreeMap<(What, u64), u64>),
}

impl Dice {
    /// Outcomes are drawn, each site's from a stream of its own.
    #[must_use]
    pub fn drawn(site: Site, seed: u64) -> Self {
        Self::new(site, Source::Drawn(stream(site, seed)))
    }

    /// The same outcomes, and [`Dice::take_recorded`] tells those that were not usual.
    #[must_use]
    pub fn recorded(site: Site, seed: u64) -> Self {
        Self::new(site, Source::Recorded(stream(site, seed), Vec::new()))
    }

    /// Nothing is drawn: these of `choices` that are about `site`, and else what is usual.
    #[must_use]
    pub fn played(site: Site, choices: &[Choice]) -> Self {
        let own = choices.iter().filter(|choice| choice.site == site);
        let played = own.map(|choice| ((choice.what, choice.number), choice.value));
        Self::new(site, Source::Played(played.collect()))
    }

    fn new(site: Site, source: Source) -> Self {
        Self {
            site,
            taken: [0; What::ALL.len()],
            source,
        }
    }

    /// Takes a decision: `usual`, unless `draw` or the script says otherwise.
    pub fn decide(&mut self, what: What, usual: u64, draw: impl FnOnce(&mut Rng) -> u64) -> u64 {
        let taken = &mut self.taken[what as usize];
        let number = *taken;
        *taken += 1;
        match &mut self.source {
            Source::Drawn(random) => draw(random),
            Source::Recorded(random, recorded) => {
                let value = draw(random);
                if value != usual {
                    recorded.push(Choice {
                        site: self.site,
                        what,
                        number,
                        value,
                    });
                }
                value
            }
            Source::Played(played) => played.get(&(what, number)).copied().unwrap_or(usual),
        }
    }

    /// A number of a range, each as likely as the other. Usually the least.
    pub fn between(&mut self, what: What, range: RangeInclusive<u64>) -> u64 {
        let usual = *range.start();
        self.decide(what, usual, |random| random.u64(range))
    }

    /// Whether something happens that happens so many times in a million. Usually it does not.
    pub fn chance(&mut self, what: What, ppm: u32) -> bool {
        // Most classes are off in most runs: nothing is drawn, and nothing has to be remembered.
        if ppm == 0 && !matches!(self.source, Source::Played(_)) {
            self.taken[what as usize] += 1;
            return false;
        }
        self.decide(what, 0, |random| u64::from(random.u32(0..1_000_000) < ppm)) != 0
    }

    /// One of several things that happen so many times in a million, each by its number, which is not 0.
    /// Usually none of them does: 0.
    pub fn one_of<I>(&mut self, what: What, rates: I) -> u64
    where
        I: Iterator<Item = (u64, u32)> + Clone,
    {
        let off = rates.clone().all(|(_, ppm)| ppm == 0);
        if off && !matches!(self.source, Source::Played(_)) {
            self.taken[what as usize] += 1;
            return 0;
        }
        self.decide(what, 0, |random| {
            let mut drawn = random.u32(0..1_000_000);
            for (number, ppm) in rates {
                if drawn < ppm {
                    return number;
                }
                drawn -= ppm;
            }
            0
        })
    }

    /// Whom the decisions are about.
    #[must_use]
    pub fn site(&self) -> Site {
        self.site
    }

    /// What came out otherwise than usual so far, if it is recorded.
    pub fn take_recorded(&mut self) -> Vec<Choice> {
        match &mut self.source {
            Source::Recorded(_, recorded) => std::mem::take(recorded),
            Source::Drawn(_) | Source::Played(_) => Vec::new(),
        }
    }
}

/// The stream of a site: what is drawn at one does not depend on how much is drawn at another.
fn stream(site: Site, seed: u64) -> Rng {
    let number = match site {
        Site::Link(from, to) => 1 << 32 | from.0 << 16 | to.0,
        Site::Disk(node) => 2 << 32 | node.0,
        Site::Node(node) => 3 << 32 | node.0,
    };
    // Seeds and sites are small numbers; an odd factor spreads them over all bits.
    Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Link(from, to) => write!(f, "link {from}>{to}"),
            Site::Disk(node) => write!(f, "disk {node}"),
            Site::Node(node) => write!(f, "node {node}"),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            site,
            what,
            number,
            value,
        } = self;
        write!(f, "{site} {} {number} = {value}", what.name())
    }
}

impl Choice {
    /// Of which kind its site is: links, disks and nodes apart.
    pub(crate) fn site_kind(&self) -> u8 {
        match self.site {
            Site::Link(..) => 0,
            Site::Disk(_) => 1,
            Site::Node(_) => 2,
        }
    }
}

/// A line of a script does not say a choice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a choice, such as 'link 1>2 delay 57 = 4300': '{0}'")]
pub struct NotAChoice(String);

impl FromStr for Choice {
    type Err = NotAChoice;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        parse(line).ok_or_else(|| NotAChoice(line.to_owned()))
    }
}

impl TryFrom<String> for Choice {
    type Error = NotAChoice;

    fn try_from(line: String) -> Result<Self, Self::Error> {
        line.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

fn parse(line: &str) -> Option<Choice> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [kind, whom, what, number, "=", value] = words[..] else {
        return None;
    };
    let node = |text: &str| Some(NodeId(text.parse().ok()?));
    let site = match kind {
        "link" => {
            let (from, to) = whom.split_once('>')?;
            Site::Link(node(from)?, node(to)?)
        }
        "disk" => Site::Disk(node(whom)?),
        "node" => Site::Node(node(whom)?),
        _ => return None,
    };
    Some(Choice {
        site,
        what: *What::ALL.iter().find(|known| known.name() == what)?,
        number: number.parse().ok()?,
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Site = Site::Link(NodeId(1), NodeId(2));

    fn outcomes(dice: &mut Dice) -> Vec<u64> {
        let delay = |dice: &mut Dice| dice.between(What::Delay, 20..=800);
        (0..50)
            .flat_map(|_| {
                let lost = dice.chance(What::Lose, 200_000);
                [u64::from(lost), delay(dice)]
            })
            .collect()
    }

    #[test]
    fn what_was_recorded_plays_again_and_nothing_is_drawn() {
        let mut recorded = Dice::recorded(LINK, 7);
        let first = outcomes(&mut recorded);
        assert_eq!(first, outcomes(&mut Dice::drawn(LINK, 7)));
        let choices = recorded.take_recorded();
        let lines: Vec<String> = choices.iter().map(Choice::to_string).collect();
        let parsed: Vec<Choice> = lines.iter().map(|line| line.parse().unwrap()).collect();
        assert_eq!(parsed, choices);
        assert_eq!(first, outcomes(&mut Dice::played(LINK, &parsed)));
    }

    #[test]
    fn a_choice_that_is_left_out_has_its_usual_outcome() {
        let mut recorded = Dice::recorded(LINK, 7);
        let first = outcomes(&mut recorded);
        let mut choices = recorded.take_recorded();
        choices.retain(|choice| choice.what == What::Lose);
        let played = outcomes(&mut Dice::played(LINK, &choices));
        for (pair, first) in played.chunks(2).zip(first.chunks(2)) {
            assert_eq!((pair[0], pair[1]), (first[0], 20));
        }
    }

    #[test]
    fn of_several_things_at_most_one_happens_and_as_often_as_it_is_to() {
        let mut dice = Dice::drawn(LINK, 7);
        let mut counts = [0; 4];
        for _ in 0..10_000 {
            let rates = [(1, 500_000), (2, 0), (3, 250_000)];
            counts[dice.one_of(What::Fault, rates.into_iter()) as usize] += 1;
        }
        let near = |count: i32, expected: i32| (count - expected).abs() < 300;
        assert!(near(counts[0], 2500) && near(counts[1], 5000) && near(counts[3], 2500));
        assert_eq!(counts[2], 0);
        let choice: Choice = "link 1>2 fault 0 = 3".parse().unwrap();
        let mut dice = Dice::played(LINK, &[choice]);
        let outcomes = [0, 1].map(|_| dice.one_of(What::Fault, [(3, 0)].into_iter()));
        assert_eq!(outcomes, [3, 0]);
    }

    #[test]
    fn choices_of_other_sites_do_not_count() {
        let choice: Choice = "link 2>1 lose 0 = 1".parse().unwrap();
        assert!(!Dice::played(LINK, &[choice]).chance(What::Lose, 0));
        let other = Site::Link(NodeId(2), NodeId(1));
        assert!(Dice::played(other, &[choice]).chance(What::Lose, 0));
        for line in [
            "link 1 lose 0 = 1",
            "disk 1 lose x = 1",
            "",
            "node 1 eat 0 = 1",
        ] {
            assert!(line.parse::<Choice>().is_err(), "{line}");
        }
    }

    #[test]
    fn sites_draw_from_streams_of_their_own() {
        let back = Site::Link(NodeId(2), NodeId(1));
        let (mut one, mut other) = (Dice::drawn(LINK, 7), Dice::drawn(back, 7));
        assert_ne!(outcomes(&mut one), outcomes(&mut other));
    }
}
