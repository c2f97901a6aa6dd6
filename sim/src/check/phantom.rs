//! Nothing comes from nowhere: every observed value was brought by an operation that could have done so.

use super::history::{Answer, Call, Event, History, Operation, OperationId, Outcome};
use super::value::Node;
use super::violation::{Rule, Violation};
use super::words::name;

/// Looks at every piece of every value that an answer showed.
///
/// # Errors
///
/// The first piece, in the order of the answers, that cannot have been there.
pub fn check_phantoms(history: &History) -> Result<(), Violation> {
    let nodes = history.values().nodes();
    if nodes.iter().all(|node| node.observer.is_none()) {
        return Ok(());
    }
    let order = Order::of(history);
    let mut shown: Vec<Option<OperationId>> = vec![None; history.operations().len()];
    for node in nodes {
        let Some(observer) = node.observer else {
            continue;
        };
        let writer = check_node(history, &order, node, observer)?;
        // A value ends in an operation's piece right after it was carried out, and from then on begins with
        // all that it was then. So two values that end in the same piece show it carried out twice.
        if let Some(other) = shown[writer.0 as usize].replace(observer) {
            let text = format!("key {} shows it twice", history.operation(writer).key);
            let operations = [writer, other, observer];
            let group = history.operation(writer).group;
            return Err(Violation::new(
                history,
                Rule::Once,
                group,
                text,
                &operations,
            ));
        }
    }
    Ok(())
}

/// Which operation the last piece is of.
fn check_node(
    history: &History,
    order: &Order,
    node: &Node,
    observer: OperationId,
) -> Result<OperationId, Violation> {
    let seen = history.operation(observer);
    let guilty = |rule, text: String, operations: &[OperationId]| {
        Err(Violation::new(history, rule, seen.group, text, operations))
    };
    let Some(origin) = node.writer else {
        let text = format!("key {} has bytes that no client made", seen.key);
        return guilty(Rule::Phantom, text, &[observer]);
    };
    let Some(writer) = history.find(origin) else {
        let text = format!(
            "key {} has a piece of {}, who never was",
            seen.key,
            name(origin)
        );
        return guilty(Rule::Phantom, text, &[observer]);
    };
    let written = history.operation(writer);
    let both = [writer, observer];
    if (written.group, written.key) != (seen.group, seen.key) {
        let text = format!("key {} has what was brought to another key", seen.key);
        return guilty(Rule::Phantom, text, &both);
    }
    let shown_bytes = node.value.bytes - shorter_bytes(history, node);
    if !brings_bytes(written) || shown_bytes != written.bytes {
        let text = format!("key {} has what its operation did not bring", seen.key);
        return guilty(Rule::Phantom, text, &both);
    }
    if written.outcome == Outcome::Never {
        let text = format!("key {} has what is certainly not in the log", seen.key);
        return guilty(Rule::NeverObserved, text, &both);
    }
    if !matches!(written.answer(), None | Some(Answer::Done)) {
        let text = format!(
            "key {} has what its client was told was not written",
            seen.key
        );
        return guilty(Rule::Ineffective, text, &both);
    }
    if order.returned(observer) < order.invoked(writer) {
        let text = format!("key {} had it before", seen.key);
        return guilty(Rule::BeforeItsCall, text, &both);
    }
    Ok(writer)
}

fn shorter_bytes(history: &History, node: &Node) -> u32 {
    let shorter = node.shorter.map(|shorter| history.values().node(shorter));
    shorter.map_or(0, |node| node.value.bytes)
}

fn brings_bytes(operation: &Operation) -> bool {
    matches!(operation.call, Call::Put | Call::Append | Call::Cas { .. })
}

/// Which event of the history is which.
struct Order {
    invoked: Vec<u32>,
    returned: Vec<u32>,
}

impl Order {
    fn of(history: &History) -> Self {
        let operations = history.operations().len();
        let mut order = Self {
            invoked: vec![0; operations],
            returned: vec![u32::MAX; operations],
        };
        for (at, event) in history.events().iter().enumerate() {
            match event {
                Event::Invoked(id) => order.invoked[id.0 as usize] = at as u32,
                Event::Returned(id) => order.returned[id.0 as usize] = at as u32,
            }
        }
        order
    }

    fn invoked(&self, id: OperationId) -> u32 {
        self.invoked[id.0 as usize]
    }

    fn returned(&self, id: OperationId) -> u32 {
        self.returned[id.0 as usize]
    }
}
