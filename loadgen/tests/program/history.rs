//! Histories: what is written down, and a checker that is shown good ones and bad ones.

use crate::common::Wrong;
use crate::linearizable::not_linearizable;
use loadgen::history::Line;

const OPERATIONS: &str =
    "--rate|2k|--duration|500ms|--warmup|100ms|--mix|put=40,get=40,cas=20|--keys|8|--clients|4|";

fn history_of(wrong: Wrong, more: &str) -> Vec<Line> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    crate::common::run(
        wrong,
        &format!("{OPERATIONS}{more}--history|{}", path.display()),
    );
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_history_holds_every_operation_and_is_linearizable() {
    let lines = history_of(Wrong::Nothing, "");
    assert!((1150..=1250).contains(&lines.len()), "{}", lines.len());
    for op in ["put", "get", "cas"] {
        assert!(lines.iter().any(|line| line.op == op), "no {op}");
    }
    assert!(lines.iter().any(|line| line.swapped == Some(true)));
    assert!(
        lines
            .iter()
            .all(|line| line.outcome == "ok" && line.index.is_some())
    );
    assert!(
        lines
            .iter()
            .all(|line| line.return_ns >= Some(line.call_ns))
    );
    assert_eq!(not_linearizable(&lines), Vec::<String>::new());
}

#[test]
fn a_history_with_a_fault_is_linearizable() {
    let lines = history_of(Wrong::Elects, "--fault|0.1s kill-leader|");
    assert_eq!(not_linearizable(&lines), Vec::<String>::new());
}

#[test]
fn a_read_of_an_old_value_is_found() {
    let mut lines = history_of(Wrong::Nothing, "");
    let key = lines[0].key.clone();
    let of_key = |line: &&mut Line| line.key == key && line.output.is_some() && line.op == "get";
    let mut reads = lines.iter_mut().filter(of_key);
    let (first, last) = (reads.next().unwrap(), reads.next_back().unwrap());
    assert_ne!(first.output, last.output);
    last.output = first.output.clone();
    assert_eq!(not_linearizable(&lines), [key]);
}

fn line(op: &str, outcome: &str, index: Option<u64>, call_ns: u64) -> Line {
    Line {
        client: 0,
        op: op.to_owned(),
        key: "k".to_owned(),
        value: None,
        expected: None,
        output: None,
        swapped: None,
        call_ns,
        return_ns: (outcome != "unknown").then_some(call_ns + 1),
        outcome: outcome.to_owned(),
        index,
        slot: index.map(|_| 0),
    }
}

fn put(value: &str, outcome: &str, index: Option<u64>, call_ns: u64) -> Line {
    let value = Some(value.to_owned());
    Line {
        value,
        ..line("put", outcome, index, call_ns)
    }
}

fn get(found: &str, index: u64, call_ns: u64) -> Line {
    let output = Some(found.to_owned());
    Line {
        output,
        ..line("get", "ok", Some(index), call_ns)
    }
}

#[test]
fn what_is_unknown_may_have_happened_or_not() {
    let puts = [put("a", "ok", Some(1), 0), put("b", "unknown", None, 2)];
    let with = |reads: &[Line]| not_linearizable(&[&puts[..], reads].concat()).is_empty();
    assert!(with(&[get("a", 3, 10)]));
    assert!(with(&[get("b", 3, 10)]));
    assert!(with(&[get("a", 3, 10), get("b", 4, 20)]));
    assert!(!with(&[get("b", 3, 10), get("a", 4, 20)]));
    let never = [
        put("a", "ok", Some(1), 0),
        put("b", "never", None, 2),
        get("b", 3, 10),
    ];
    assert_eq!(not_linearizable(&never), ["k"]);
}

#[test]
fn a_log_order_against_the_order_of_calls_is_found() {
    let puts = |first, second| [put("a", "ok", first, 0), put("b", "ok", second, 10)];
    assert!(not_linearizable(&puts(Some(1), Some(2))).is_empty());
    assert_eq!(not_linearizable(&puts(Some(2), Some(1))), ["k"]);
}
