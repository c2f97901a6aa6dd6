//! A second opinion on small histories of one key, by a checker that nobody here wrote.
//!
//! It knows no operations without an answer, so both choices are tried for each of them: it never was, or it
//! had effect at some time since its call.

use todc_utils::{Action, History, Specification, WGLChecker};

use super::execution::{Execution, Fate, Held, Moment, Step, Told, carry_out};

struct Key;

#[derive(Clone, Debug)]
struct Operation {
    steps: std::rc::Rc<Vec<Step>>,
    value_bytes_max: u32,
    number: usize,
    told: Option<Told>,
}

impl Specification for Key {
    type State = Held;
    type Operation = Operation;

    fn init() -> Held {
        None
    }

    fn apply(operation: &Operation, held: &Held) -> (bool, Held) {
        let Operation {
            steps,
            value_bytes_max,
            number,
            told: said,
        } = operation;
        let (after, told) = carry_out(steps, *value_bytes_max, *number, held);
        (said.as_ref().is_none_or(|said| *said == told), after)
    }
}

/// Whether the first `moments` of an execution can be explained.
pub(crate) fn is_linearizable(execution: &Execution, moments: usize) -> bool {
    let moments = &execution.moments[..moments];
    let is_told = |number: usize| {
        let answered = matches!(execution.steps[number].fate, Fate::Told(_));
        answered && moments.contains(&Moment::End(number))
    };
    let open = open_writes(execution, moments.len());
    let steps = std::rc::Rc::new(execution.steps.clone());
    (0_u32..1 << open.len()).any(|happened| {
        let had_effect: Vec<usize> = open
            .iter()
            .enumerate()
            .filter(|(bit, _)| happened & 1 << bit != 0)
            .map(|(_, number)| *number)
            .collect();
        let operation = |number: usize| Operation {
            steps: steps.clone(),
            value_bytes_max: execution.value_bytes_max,
            number,
            told: match &execution.steps[number].fate {
                Fate::Told(told) if is_told(number) => Some(told.clone()),
                _ => None,
            },
        };
        let mut actions = Vec::new();
        for moment in moments {
            match *moment {
                Moment::Call(number) if is_told(number) || had_effect.contains(&number) => {
                    actions.push((number, Action::Call(operation(number))));
                }
                Moment::End(number) if is_told(number) => {
                    actions.push((number, Action::Response(operation(number))));
                }
                Moment::Call(_) | Moment::End(_) => {}
            }
        }
        for number in had_effect {
            actions.push((number, Action::Response(operation(number))));
        }
        actions.is_empty() || WGLChecker::<Key>::is_linearizable(History::from_actions(actions))
    })
}

/// What is called by then, may have had effect, and has no answer.
pub(crate) fn open_writes(execution: &Execution, moments: usize) -> Vec<usize> {
    let moments = &execution.moments[..moments];
    let is_open = |number: usize| {
        let step = &execution.steps[number];
        let ended = matches!(step.fate, Fate::Told(_)) && moments.contains(&Moment::End(number));
        let is_write = !matches!(step.asked, super::execution::Asked::Get);
        !ended && is_write && step.fate != Fate::Never
    };
    moments
        .iter()
        .filter_map(|moment| match *moment {
            Moment::Call(number) if is_open(number) => Some(number),
            Moment::Call(_) | Moment::End(_) => None,
        })
        .collect()
}
