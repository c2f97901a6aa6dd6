//! `logdrive snapshot`: has a node take a snapshot now, and waits for it.

use logdrive::units::show_bytes;
use serde_json::Value;

use crate::args::Snapshot;
use crate::connect;
use crate::exit::{Exit, Failure};
use crate::out::{Out, complain};

/// Runs the command.
pub(crate) fn run(command: &Snapshot, out: &mut Out<'_>) -> Result<Exit, Failure> {
    let json = connect::take_snapshot(command)?;
    let answer: Value = serde_json::from_str(&json).map_err(|error| {
        let address = &command.address;
        Failure::unreachable(format!("{address} sent an answer that is no JSON: {error}"))
    })?;
    if command.json {
        writeln!(out, "{json}")?;
    }
    if answer["taken"] != Value::Bool(true) {
        complain(&refusal(&answer));
        return Ok(Exit::AssertionFailed);
    }
    if !command.json {
        writeln!(out, "{}", line(&answer))?;
    }
    Ok(Exit::Pass)
}

fn line(answer: &Value) -> String {
    let number = |key: &str| match answer[key].as_u64() {
        Some(number) => number.to_string(),
        None => "-".to_owned(),
    };
    let mut line = format!(
        "node {} group {} snapshot up to entry {} term {}",
        number("node"),
        number("group"),
        number("index"),
        number("term")
    );
    if let Some(bytes) = answer["bytes"].as_u64() {
        line.push_str(&format!(", {}", show_bytes(bytes)));
    }
    match answer["took_ms"].as_u64() {
        Some(ms) => line.push_str(&format!(", took {ms} ms")),
        None => line.push_str(", was there already"),
    }
    line
}

fn refusal(answer: &Value) -> String {
    let (node, group) = (&answer["node"], &answer["group"]);
    let why = answer["why"].as_str().unwrap_or("it does not say why");
    format!("node {node} took no snapshot of group {group}: {why}; nothing is lost by that")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_snapshot_is_one_line() {
        let mut answer = json!({"schema": "logdrive.snapshot/1", "node": 1, "group": 1, "taken": true, "why": null,
            "index": 1234, "term": 3, "bytes": 1258291, "took_ms": 35});
        assert_eq!(
            line(&answer),
            "node 1 group 1 snapshot up to entry 1234 term 3, 1.2 MiB, took 35 ms"
        );
        answer["took_ms"] = Value::Null;
        assert!(line(&answer).ends_with("1.2 MiB, was there already"));
    }

    #[test]
    fn why_there_is_none_is_said() {
        let answer = json!({"node": 1, "group": 2, "taken": false, "why": "no space"});
        let text = "node 1 took no snapshot of group 2: no space; nothing is lost by that";
        assert_eq!(refusal(&answer), text);
    }
}
