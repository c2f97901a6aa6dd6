//! Any order that explains a key: a search that knows nothing of the log.
//!
//! It is the search of Wing and Gong with Lowe's memo (Wing & Gong 1993; Lowe 2017), key by key, for what
//! is linearizable key by key is so as a whole. Unlike there, an operation without an answer may be carried
//! out at any time after its call, or never.
//!
//! The general problem has no fast answer. This one has, nearly always, because no two operations bring the
//! same bytes along: what a value is made of says who made it, so most of the orders that could be tried are
//! known not to work (`key`, `walk`).

mod key;
mod links;
mod walk;

use std::collections::BTreeMap;

use logdrive_raft::GroupId;

use self::key::Key;
use self::walk::{End, Walk};
use super::history::{Event, History, OperationId, Outcome};
use super::violation::{Rule, Violation};

/// How far a search goes. Steps are counted, not timed, so that a seed has the same verdict everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations of a key.
    pub operations_max: usize,
    /// Operations of a key that are called, not yet answered and will be.
    pub open_max: usize,
    /// How often an operation of a key is put in its place, on all ways together.
    pub steps_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            operations_max: 2_000,
            open_max: 512,
            steps_max: 1_000_000,
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An order explains every answer.
    Linearizable,
    /// No order does. The violation tells the shortest beginning that none explains.
    NotLinearizable(Violation),
    /// The search did not end within its limits. That is a failure of the harness.
    GaveUp(Violation),
}

/// What the search of a whole history looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Keys of all groups.
    pub keys: u64,
    /// How often an operation was put in its place.
    pub steps: u64,
}

/// Searches every key.
///
/// # Errors
///
/// The first key that no order explains; if there is none, the first one whose search gave up.
pub fn check_search(history: &History, limits: &Limits) -> Result<Searched, Violation> {
    let mut searched = Searched::default();
    let mut gave_up = None;
    for ((group, key), events) in events_by_key(history) {
        let (verdict, steps) = search(history, group, key, &events, limits);
        searched.keys += 1;
        searched.steps += steps;
        match verdict {
            Verdict::Linearizable => {}
            Verdict::NotLinearizable(violation) => return Err(violation),
            Verdict::GaveUp(violation) => gave_up = gave_up.or(Some(violation)),
        }
    }
    gave_up.map_or(Ok(searched), Err)
}

/// Searches every key, each to its end: the verdicts, by group and key.
#[must_use]
pub fn search_keys(history: &History, limits: &Limits) -> Vec<Verdict> {
    let keys = events_by_key(history).into_iter();
    keys.map(|((group, key), events)| search(history, group, key, &events, limits).0)
        .collect()
}

/// Searches one key.
#[must_use]
pub fn search_key(history: &History, group: GroupId, key: u32, limits: &Limits) -> Verdict {
    let events = events_by_key(history).remove(&(group, key));
    search(history, group, key, &events.unwrap_or_default(), limits).0
}

fn events_by_key(history: &History) -> BTreeMap<(GroupId, u32), Vec<Event>> {
    let mut keys: BTreeMap<_, Vec<Event>> = BTreeMap::new();
    for event in history.events() {
        let (Event::Invoked(id) | Event::Returned(id)) = event;
        let operation = history.operation(*id);
        // It is certain that these did nothing.
        if operation.outcome != Outcome::Never {
            let key = (operation.group, operation.key);
            keys.entry(key).or_default().push(*event);
        }
    }
    keys
}

/// What a search of some of the events of a key comes to.
enum Found {
    Order,
    NoOrder,
    GaveUp(String),
}

fn search(
    history: &History,
    group: GroupId,
    key: u32,
    events: &[Event],
    limits: &Limits,
) -> (Verdict, u64) {
    let (found, steps) = search_events(history, events, limits);
    let verdict = match found {
        Found::Order => Verdict::Linearizable,
        Found::NoOrder => {
            Verdict::NotLinearizable(shortest_beginning(history, group, key, events, limits))
        }
        Found::GaveUp(why) => {
            let text = format!("key {key}: {why}");
            Verdict::GaveUp(Violation::new(history, Rule::Searched, group, text, &[]))
        }
    };
    (verdict, steps)
}

fn search_events(history: &History, events: &[Event], limits: &Limits) -> (Found, u64) {
    let key = match Key::new(history, events) {
        Ok(key) => key,
        Err(_) => return (Found::NoOrder, 0),
    };
    let gave_up = |why| (Found::GaveUp(why), 0);
    if key.operations.len() > limits.operations_max {
        return gave_up(format!("more than {} operations", limits.operations_max));
    }
    if key.open_max > limits.open_max {
        return gave_up(format!("more than {} open at once", limits.open_max));
    }
    let mut walk = Walk::new(key, history.value_bytes_max());
    let found = match walk.run(limits.steps_max) {
        End::Order => Found::Order,
        End::NoOrder => Found::NoOrder,
        End::OutOfSteps => Found::GaveUp(format!("no end after {} steps", limits.steps_max)),
    };
    (found, walk.steps())
}

/// The least number of answers that no order explains. What is called and not answered by then may have
/// happened or not, and an order of all answers explains each beginning, so the number can be bisected.
fn shortest_beginning(
    history: &History,
    group: GroupId,
    key: u32,
    events: &[Event],
    limits: &Limits,
) -> Violation {
    let is_answer = |event: &Event| match event {
        Event::Returned(id) => history.operation(*id).answer().is_some(),
        Event::Invoked(_) => false,
    };
    let answers: Vec<usize> = (0..events.len())
        .filter(|at| is_answer(&events[*at]))
        .collect();
    let explained = answers.partition_point(|last| {
        let (found, _) = search_events(history, &events[..=*last], limits);
        !matches!(found, Found::NoOrder)
    });
    // If a part was given up on, the whole is still known to be unexplained.
    let last = explained.min(answers.len().saturating_sub(1));
    let told = last.saturating_sub(TOLD_MAX - 1)..=last;
    let told: Vec<OperationId> = answers
        .get(told)
        .unwrap_or_default()
        .iter()
        .map(|at| match events[*at] {
            Event::Invoked(id) | Event::Returned(id) => id,
        })
        .collect();
    let left_out = last + 1 - told.len();
    let before = if left_out > 0 {
        format!(", of which {left_out} are left out here")
    } else {
        String::new()
    };
    let text = format!(
        "no order explains the first {} answers of key {key}{before}",
        last + 1
    );
    Violation::new(history, Rule::Linearizable, group, text, &told)
}

/// The answers that a text repeats.
const TOLD_MAX: usize = 8;
