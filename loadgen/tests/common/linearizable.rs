//! Whether a history is linearizable, key by key, as a checker that nobody here wrote sees it.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::collections::{BTreeMap, HashSet};

use loadgen::history::Line;
use todc_utils::{Action, History, Specification, WGLChecker};

/// One key: a value or none.
struct Register;

#[derive(Clone, Debug)]
enum Operation {
    Put(Option<String>),
    Append(String),
    Get(Option<String>),
    Swap {
        expected: Option<String>,
        new: String,
        /// Whether it took effect, and what was found if not; `None`: nobody knows.
        outcome: Option<Result<(), Option<String>>>,
    },
}

impl Specification for Register {
    type State = Option<String>;
    type Operation = Operation;

    fn init() -> Self::State {
        None
    }

    fn apply(operation: &Operation, state: &Self::State) -> (bool, Self::State) {
        match operation {
            Operation::Put(value) => (true, value.clone()),
            Operation::Append(tail) => {
                let value = state.clone().unwrap_or_default() + tail;
                (true, Some(value))
            }
            Operation::Get(found) => (found == state, state.clone()),
            Operation::Swap {
                expected,
                new,
                outcome,
            } => {
                let swaps = expected == state;
                let after = if swaps {
                    Some(new.clone())
                } else {
                    state.clone()
                };
                let fits = match outcome {
                    None => true,
                    Some(Ok(())) => swaps,
                    Some(Err(found)) => !swaps && found == state,
                };
                (fits, if fits { after } else { state.clone() })
            }
        }
    }
}

fn operation(line: &Line) -> Option<Operation> {
    let known = line.outcome == "ok";
    Some(match line.op.as_str() {
        // A read that nobody got an answer to says nothing.
        "get" if !known => return None,
        "get" => Operation::Get(line.output.clone()),
        "put" => Operation::Put(line.value.clone()),
        "delete" => Operation::Put(None),
        "append" => Operation::Append(line.value.clone()?),
        "cas" => Operation::Swap {
            expected: line.expected.clone(),
            new: line.value.clone()?,
            outcome: known.then(|| match line.swapped {
                Some(true) => Ok(()),
                _ => Err(line.output.clone()),
            }),
        },
        other => panic!("{other} is no operation"),
    })
}

/// The keys whose operations cannot be put in any order that explains them.
pub(crate) fn not_linearizable(lines: &[Line]) -> Vec<String> {
    let mut keys: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.outcome != "never") {
        keys.entry(&line.key).or_default().push(line);
    }
    let bad = keys
        .into_iter()
        .filter(|(_, lines)| !is_linearizable(lines));
    bad.map(|(key, _)| key.to_owned()).collect()
}

/// After a fault hundreds of operations of a key overlap, and no search through their orders ends. The
/// cluster claims an order, so the checker is shown a history in which each operation takes only the moment
/// that order gives it. What is linearizable in less time is so in more.
fn is_linearizable(lines: &[&Line]) -> bool {
    let observed: HashSet<&str> = lines.iter().filter_map(|line| observes(line)).collect();
    let is_known = |line: &&&Line| line.outcome == "ok";
    let mut known: Vec<&Line> = lines.iter().filter(is_known).copied().collect();
    known.sort_by_key(|line| (line.index, line.slot));
    // The claimed order must not put an operation after one that was called when it had returned.
    let mut called_ns = 0;
    for line in &known {
        called_ns = called_ns.max(line.call_ns);
        if line.return_ns.is_none_or(|return_ns| return_ns < called_ns) {
            return false;
        }
    }
    // What is unknown and was never seen may have happened after everything else. What was seen happened
    // before it was: any earlier moment since the last write explains the same.
    let mut unknown: Vec<&Line> = lines
        .iter()
        .filter(|line| line.outcome == "unknown")
        .filter(|line| line.value.as_deref().is_some_and(|v| observed.contains(v)))
        .copied()
        .collect();
    let mut order: Vec<Operation> = Vec::new();
    for line in known {
        let seen = observes(line);
        let writer = unknown.iter().position(|unknown| {
            seen == unknown.value.as_deref() && Some(unknown.call_ns) <= line.return_ns
        });
        if let Some(writer) = writer {
            order.extend(operation(unknown.swap_remove(writer)));
        }
        order.extend(operation(line));
    }
    if order.is_empty() {
        return true;
    }
    let actions = order.into_iter().flat_map(|operation| {
        [
            (0, Action::Call(operation.clone())),
            (0, Action::Response(operation)),
        ]
    });
    WGLChecker::<Register>::is_linearizable(History::from_actions(actions.collect()))
}

/// The value that an operation shows its key to have had.
fn observes(line: &Line) -> Option<&str> {
    match (line.op.as_str(), line.swapped) {
        ("get", _) | ("cas", Some(false)) => line.output.as_deref(),
        ("cas", Some(true)) => line.expected.as_deref(),
        _ => None,
    }
}
