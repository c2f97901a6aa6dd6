//! The log as witness: it says in which order everything happened, and all answers must agree with it.
//!
//! A history that passes is linearizable, for the log is an order that explains it, and it is found in one
//! pass instead of by a search. What it cannot see is a log that is wrong about itself, which the search can.

use std::collections::BTreeMap;

use logdrive_raft::{GroupId, Index};
use logdrive_shard::kv::Origin;

use super::history::{Event, History, OperationId, Outcome, Place};
use super::model;
use super::value::Value;
use super::violation::{Rule, Violation};
use super::words::name;

/// A proposal in a committed log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Where it lies.
    pub place: Place,
    /// Whose it is.
    pub origin: Origin,
}

/// The logs of all groups, each in its order.
pub type Logs = BTreeMap<GroupId, Vec<Committed>>;

/// Compares all that clients were told with the order in which they asked and with the logs.
///
/// # Errors
///
/// The first thing that does not agree.
pub fn check_witness(history: &History, logs: &Logs) -> Result<(), Violation> {
    let claimed = history.operations().iter().map(claim).collect::<Vec<_>>();
    check_claims(history, &claimed)?;
    check_real_time(history, &claimed)?;
    let found = check_logs(history, logs)?;
    // What nobody has an answer to has a place all the same once the log holds it.
    check_real_time(history, &found)
}

fn claim(operation: &super::history::Operation) -> Option<Place> {
    match operation.outcome {
        Outcome::Ok { place, .. } => Some(place),
        Outcome::Never | Outcome::Unknown => None,
    }
}

/// No two clients were told the same place.
fn check_claims(history: &History, claimed: &[Option<Place>]) -> Result<(), Violation> {
    let mut taken: Vec<(GroupId, Place, OperationId)> = ids(claimed)
        .map(|(id, place)| (history.operation(id).group, place, id))
        .collect();
    taken.sort_unstable();
    for pair in taken.windows(2) {
        let ((group, place, one), (other_group, other_place, other)) = (pair[0], pair[1]);
        if (group, place) == (other_group, other_place) {
            let text = format!("both were told {}", at(place));
            return Err(Violation::new(
                history,
                Rule::OnePlace,
                group,
                text,
                &[one, other],
            ));
        }
    }
    Ok(())
}

/// What was called when another had been answered lies behind it (I14 for reads, and for writes the same).
fn check_real_time(history: &History, places: &[Option<Place>]) -> Result<(), Violation> {
    let mut floors: BTreeMap<GroupId, Floor> = BTreeMap::new();
    let mut floor_of: Vec<Option<Floor>> = vec![None; places.len()];
    for event in history.events() {
        match *event {
            Event::Invoked(id) => {
                let group = history.operation(id).group;
                let floor = floors.get(&group).copied();
                floor_of[id.0 as usize] = floor;
                if let (Some(floor), Some(place)) = (floor, places[id.0 as usize])
                    && place <= floor.place
                {
                    let text = format!(
                        "{} is before {}, called after it",
                        at(place),
                        at(floor.place)
                    );
                    let both = [floor.holder, id];
                    return Err(Violation::new(history, Rule::RealTime, group, text, &both));
                }
            }
            Event::Returned(id) => {
                let operation = history.operation(id);
                let (Some(place), Outcome::Ok { .. }) = (places[id.0 as usize], operation.outcome)
                else {
                    continue;
                };
                let floor = Floor { place, holder: id };
                let highest = floors.entry(operation.group).or_insert(floor);
                if highest.place < place {
                    *highest = floor;
                }
            }
        }
    }
    Ok(())
}

/// The highest place of all that were answered.
#[derive(Clone, Copy, Debug)]
struct Floor {
    place: Place,
    holder: OperationId,
}

/// Replays the logs through the reference model. Returns where each operation was found.
fn check_logs(history: &History, logs: &Logs) -> Result<Vec<Option<Place>>, Violation> {
    let mut found: Vec<Option<Place>> = vec![None; history.operations().len()];
    for (group, log) in logs {
        check_log(history, *group, log, &mut found)?;
    }
    for (operation, id) in history.operations().iter().zip(0..) {
        if matches!(operation.outcome, Outcome::Ok { .. }) && found[id as usize].is_none() {
            let group = operation.group;
            let last = logs.get(&group).and_then(|log| log.last());
            let text = match last {
                Some(last) => format!("the log goes to {}", at(last.place)),
                None => "there is no log".to_owned(),
            };
            let id = [OperationId(id)];
            return Err(Violation::new(history, Rule::Missing, group, text, &id));
        }
    }
    Ok(found)
}

fn check_log(
    history: &History,
    group: GroupId,
    log: &[Committed],
    found: &mut [Option<Place>],
) -> Result<(), Violation> {
    let guilty = |rule, text: String, operations: &[OperationId]| {
        Err(Violation::new(history, rule, group, text, operations))
    };
    let mut keys: BTreeMap<u32, Value> = BTreeMap::new();
    let mut last: Option<Place> = None;
    for &Committed { place, origin } in log {
        if let Some(last) = last
            && place <= last
        {
            let rule = if place == last {
                Rule::OnePlace
            } else {
                Rule::LogOrder
            };
            let text = format!("{} follows {} in the log", at(place), at(last));
            let ids: Vec<_> = history.find(origin).into_iter().collect();
            return guilty(rule, text, &ids);
        }
        last = Some(place);
        let Some(id) = history.find(origin) else {
            let text = format!("{} holds {}, who never was", at(place), name(origin));
            return guilty(Rule::Stranger, text, &[]);
        };
        let operation = history.operation(id);
        if operation.group != group {
            let text = format!(
                "{} holds what was sent to group {}",
                at(place),
                operation.group
            );
            return guilty(Rule::Stranger, text, &[id]);
        }
        if let Some(before) = found[id.0 as usize].replace(place) {
            let text = format!("{} and {}", at(before), at(place));
            return guilty(Rule::Once, text, &[id]);
        }
        let (after, answer) = {
            let held = keys.get(&operation.key).copied();
            model::apply(held, operation, history.value_bytes_max())
        };
        match operation.outcome {
            Outcome::Never => return guilty(Rule::NeverInLog, at(place), &[id]),
            Outcome::Ok { place: said, .. } if said != place => {
                return guilty(Rule::Moved, format!("it lies at {}", at(place)), &[id]);
            }
            Outcome::Ok { answer: said, .. } if said != answer => {
                let right = history.answer_in_words(answer);
                return guilty(Rule::Answer, format!("the log says {right}"), &[id]);
            }
            Outcome::Ok { .. } | Outcome::Unknown => {}
        }
        match after {
            Some(value) => keys.insert(operation.key, value),
            None => keys.remove(&operation.key),
        };
    }
    Ok(())
}

fn ids(places: &[Option<Place>]) -> impl Iterator<Item = (OperationId, Place)> + '_ {
    let ids = (0..).map(OperationId);
    ids.zip(places)
        .filter_map(|(id, place)| place.map(|place| (id, place)))
}

fn at(Place { index, slot }: Place) -> String {
    let Index(index) = index;
    format!("{index}.{slot}")
}
