//! Operations and values in words, for the line that a violation is.

use std::fmt::Write as _;

use logdrive_shard::kv::Origin;

use super::history::{Answer, Call, History, Operation, OperationId, Outcome};
use super::value::{Node, Value};

impl History {
    /// An operation in words.
    #[must_use]
    pub fn describe(&self, id: OperationId) -> String {
        let operation = self.operation(id);
        let mut text = format!(
            "{} {}",
            name(operation.origin),
            self.call_in_words(operation)
        );
        // Nothing is lost where a text grows, so there is nothing to be done about an error.
        let _ = match operation.outcome {
            Outcome::Ok { answer, place } => write!(
                text,
                " = {} at {}.{}",
                self.answer_in_words(answer),
                place.index,
                place.slot
            ),
            Outcome::Never => write!(text, " = never appended"),
            Outcome::Unknown => write!(text, " = unknown"),
        };
        let _ = write!(text, " [{}..", operation.invoked_us);
        let _ = match operation.returned_us {
            Some(returned_us) => write!(text, "{returned_us} us]"),
            None => write!(text, " us]"),
        };
        text
    }

    fn call_in_words(&self, operation: &Operation) -> String {
        let key = operation.key;
        let empty = if operation.bytes == 0 { " nothing" } else { "" };
        match operation.call {
            Call::Get => format!("get key {key}"),
            Call::Put => format!("put{empty} key {key}"),
            Call::Delete => format!("delete key {key}"),
            Call::Append => format!("append{empty} key {key}"),
            Call::Cas { expected } => {
                let expected = self.value_in_words(expected);
                format!("cas{empty} key {key} if {expected}")
            }
        }
    }

    pub(super) fn answer_in_words(&self, answer: Answer) -> String {
        match answer {
            Answer::Done => "done".to_owned(),
            Answer::Value(value) => self.value_in_words(Some(value)),
            Answer::Absent => "absent".to_owned(),
            Answer::Mismatch(found) => format!("mismatch, {}", self.value_in_words(found)),
            Answer::TooLarge => "too large".to_owned(),
            Answer::Malformed => "malformed".to_owned(),
        }
    }

    /// A value in words: who wrote it, and who added the last piece to it.
    pub(super) fn value_in_words(&self, value: Option<Value>) -> String {
        let Some(value) = value else {
            return "absent".to_owned();
        };
        if value.pieces == 0 {
            return "the empty value".to_owned();
        }
        if self.values().find(value).is_none() {
            return format!("{} pieces that nobody saw", value.pieces);
        }
        let writer = |node: Option<&Node>| match node.and_then(|node| node.writer) {
            Some(origin) => name(origin),
            None => "nobody".to_owned(),
        };
        let last = writer(self.values().grown_from(value).next());
        if value.pieces == 1 {
            return format!("the value of {last}");
        }
        let first = writer(self.values().grown_from(value).last());
        format!("{} pieces from {first} to {last}", value.pieces)
    }
}

/// How an operation is called in a text.
pub(super) fn name(origin: Origin) -> String {
    format!("client {} #{}", origin.client, origin.sequence)
}
