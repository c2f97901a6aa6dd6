//! Executions of a correct machine whose calls overlap, and ways to spoil what its clients were told.

use std::collections::BTreeMap;

use fastrand::Rng;
use logdrive_raft::{GroupId, Index};
use logdrive_shard::kv::Origin;
use logdrive_sim::check::{Answer, Call, Committed, History, Logs, OperationId, Place, Value};

/// A value: the operations that made it.
pub(crate) type Pieces = Vec<usize>;

/// What a key holds.
pub(crate) type Held = Option<Pieces>;

#[derive(Clone, Debug)]
pub(crate) enum Asked {
    Get,
    Put,
    Delete,
    Append,
    Cas(Held),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Done,
    Has(Held),
    Mismatch(Held),
    TooLarge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Told(Told),
    Unknown,
    Never,
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: u32,
    pub(crate) asked: Asked,
    pub(crate) bytes: u32,
    pub(crate) fate: Fate,
    /// Where it was carried out, if it was.
    pub(crate) index: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    Call(usize),
    End(usize),
}

/// What to draw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) operations: usize,
    pub(crate) clients: usize,
    pub(crate) keys: u32,
    pub(crate) value_bytes_max: u32,
    /// How many in a thousand are given up, and may be carried out.
    pub(crate) unknown_per_mille: u32,
    /// How many unknown ones there are at most.
    pub(crate) unknown_max: usize,
    /// How many in eight writes bring nothing along.
    pub(crate) empty_in_8: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) steps: Vec<Step>,
    pub(crate) moments: Vec<Moment>,
    pub(crate) value_bytes_max: u32,
}

/// What the operation makes of the key: written a third time, for what is tested must not judge itself.
pub(crate) fn carry_out(
    steps: &[Step],
    value_bytes_max: u32,
    operation: usize,
    held: &Held,
) -> (Held, Told) {
    let step = &steps[operation];
    let brought: Pieces = (0..step.bytes.min(1)).map(|_| operation).collect();
    match &step.asked {
        Asked::Get => (held.clone(), Told::Has(held.clone())),
        Asked::Put => (Some(brought), Told::Done),
        Asked::Delete => (None, Told::Done),
        Asked::Append => {
            let value = [held.clone().unwrap_or_default(), brought].concat();
            let bytes: u32 = value.iter().map(|piece| steps[*piece].bytes).sum();
            if bytes > value_bytes_max {
                (held.clone(), Told::TooLarge)
            } else {
                (Some(value), Told::Done)
            }
        }
        Asked::Cas(expected) if expected == held => (Some(brought), Told::Done),
        Asked::Cas(_) => (held.clone(), Told::Mismatch(held.clone())),
    }
}

impl Execution {
    /// Clients that call one operation after the other; each is carried out between its call and its end, or
    /// given up, and then perhaps carried out much later.
    pub(crate) fn draw(random: &mut Rng, shape: Shape) -> Self {
        let mut execution = Self {
            steps: Vec::new(),
            moments: Vec::new(),
            value_bytes_max: shape.value_bytes_max,
        };
        let mut held: BTreeMap<u32, Held> = BTreeMap::new();
        // What each client waits for, and whether it has been carried out.
        let mut waits: Vec<Option<usize>> = vec![None; shape.clients];
        let mut given_up: Vec<usize> = Vec::new();
        let mut index = 0;
        let mut unknown = 0;
        loop {
            let is_over = execution.steps.len() == shape.operations;
            if is_over && waits.iter().all(Option::is_none) {
                return execution;
            }
            let client = random.usize(..shape.clients);
            if random.u32(..16) == 0 && !given_up.is_empty() {
                let late = given_up.swap_remove(random.usize(..given_up.len()));
                execution.carry_out(late, &mut held, &mut index);
            }
            let Some(operation) = waits[client] else {
                if !is_over {
                    waits[client] = Some(execution.call(random, shape, &held));
                }
                continue;
            };
            if execution.steps[operation].index.is_none() {
                let draw = random.u32(..1_000);
                if draw < shape.unknown_per_mille && unknown < shape.unknown_max {
                    unknown += 1;
                    given_up.push(operation);
                    waits[client] = None;
                    execution.moments.push(Moment::End(operation));
                } else if draw >= 980 {
                    execution.steps[operation].fate = Fate::Never;
                    waits[client] = None;
                    execution.moments.push(Moment::End(operation));
                } else {
                    let told = execution.carry_out(operation, &mut held, &mut index);
                    execution.steps[operation].fate = Fate::Told(told);
                }
            } else {
                waits[client] = None;
                execution.moments.push(Moment::End(operation));
            }
        }
    }

    fn call(&mut self, random: &mut Rng, shape: Shape, held: &BTreeMap<u32, Held>) -> usize {
        let key = random.u32(..shape.keys);
        let now = held.get(&key).cloned().flatten();
        let asked = match random.u32(..10) {
            0..4 => Asked::Get,
            4 | 5 => Asked::Put,
            6 => Asked::Delete,
            7 | 8 => Asked::Append,
            _ => Asked::Cas(now.filter(|_| random.u32(..4) > 0)),
        };
        let bytes = match asked {
            Asked::Get | Asked::Delete => 0,
            _ if random.u32(..8) < shape.empty_in_8 => 0,
            _ => 20,
        };
        self.steps.push(Step {
            key,
            asked,
            bytes,
            fate: Fate::Unknown,
            index: None,
        });
        let operation = self.steps.len() - 1;
        self.moments.push(Moment::Call(operation));
        operation
    }

    fn carry_out(
        &mut self,
        operation: usize,
        held: &mut BTreeMap<u32, Held>,
        index: &mut u64,
    ) -> Told {
        *index += 1;
        self.steps[operation].index = Some(*index);
        let held = held.entry(self.steps[operation].key).or_default();
        let (after, told) = carry_out(&self.steps, self.value_bytes_max, operation, held);
        *held = after;
        told
    }

    /// Changes something that clients can see: an answer, or when something was called or ended.
    pub(crate) fn spoil(&mut self, random: &mut Rng) {
        let operation = random.usize(..self.steps.len());
        let other = random.usize(..self.steps.len());
        match random.u32(..6) {
            0 | 1 => {
                // An answer becomes another one's.
                let fate = self.steps[other].fate.clone();
                let fits = |told: &Told, asked: &Asked| match asked {
                    Asked::Get => matches!(told, Told::Has(_)),
                    Asked::Put | Asked::Delete => *told == Told::Done,
                    Asked::Append => matches!(told, Told::Done | Told::TooLarge),
                    Asked::Cas(_) => matches!(told, Told::Done | Told::Mismatch(_)),
                };
                if let Fate::Told(told) = &fate
                    && matches!(self.steps[operation].fate, Fate::Told(_))
                    && fits(told, &self.steps[operation].asked)
                {
                    self.steps[operation].fate = fate;
                }
            }
            2 => {
                // A read shows what another has just written.
                if self.steps[other].bytes > 0
                    && let Fate::Told(Told::Has(held)) = &mut self.steps[operation].fate
                {
                    *held = Some(vec![other]);
                }
            }
            3 => {
                // A read misses the end of what it should show.
                if let Fate::Told(Told::Has(Some(pieces))) = &mut self.steps[operation].fate {
                    pieces.pop();
                }
            }
            _ => {
                // Something is called or ends much earlier or later.
                let from = random.usize(..self.moments.len());
                let moment = self.moments.remove(from);
                let position = |wanted| self.moments.iter().position(|moment| *moment == wanted);
                let (lowest, highest) = match moment {
                    Moment::Call(id) => (0, position(Moment::End(id))),
                    Moment::End(id) => (position(Moment::Call(id)).map_or(0, |at| at + 1), None),
                };
                let highest = highest.unwrap_or(self.moments.len());
                self.moments.insert(random.usize(lowest..=highest), moment);
            }
        }
    }

    pub(crate) fn origin(operation: usize) -> Origin {
        Origin {
            client: operation as u64 % 5,
            sequence: operation as u64,
        }
    }

    /// The history as the checker knows it, its log, and which operation became which.
    pub(crate) fn history(&self) -> (History, Logs, Vec<OperationId>) {
        let mut history = History::new(self.value_bytes_max);
        let mut ids = vec![OperationId(u32::MAX); self.steps.len()];
        for (moment, now_us) in self.moments.iter().zip(1..) {
            match *moment {
                Moment::Call(operation) => {
                    let step = &self.steps[operation];
                    let call = match &step.asked {
                        Asked::Get => Call::Get,
                        Asked::Put => Call::Put,
                        Asked::Delete => Call::Delete,
                        Asked::Append => Call::Append,
                        Asked::Cas(expected) => Call::Cas {
                            expected: self.value(&mut history, expected),
                        },
                    };
                    let origin = Self::origin(operation);
                    ids[operation] =
                        history.invoke_call(now_us, GROUP, step.key, origin, call, step.bytes);
                }
                Moment::End(operation) => {
                    let step = &self.steps[operation];
                    let id = ids[operation];
                    match &step.fate {
                        Fate::Unknown => history.unknown(now_us, id),
                        Fate::Never => history.never(now_us, id),
                        Fate::Told(told) => {
                            let answer = match told {
                                Told::Done => Answer::Done,
                                Told::Has(held) => self
                                    .value(&mut history, held)
                                    .map_or(Answer::Absent, Answer::Value),
                                Told::Mismatch(held) => {
                                    Answer::Mismatch(self.value(&mut history, held))
                                }
                                Told::TooLarge => Answer::TooLarge,
                            };
                            let index = step.index.unwrap();
                            history.answered(now_us, id, answer, place(index));
                        }
                    }
                }
            }
        }
        let mut log: Vec<Committed> = self
            .steps
            .iter()
            .enumerate()
            .filter_map(|(operation, step)| {
                Some(Committed {
                    place: place(step.index?),
                    origin: Self::origin(operation),
                })
            })
            .collect();
        log.sort_unstable_by_key(|committed| committed.place);
        (history, Logs::from([(GROUP, log)]), ids)
    }

    fn value(&self, history: &mut History, held: &Held) -> Option<Value> {
        let pieces: Vec<_> = held
            .as_ref()?
            .iter()
            .map(|piece| (Self::origin(*piece), self.steps[*piece].bytes))
            .collect();
        Some(history.value(&pieces))
    }
}

fn place(index: u64) -> Place {
    Place {
        index: Index(index),
        slot: 0,
    }
}

pub(crate) const GROUP: GroupId = GroupId(1);
