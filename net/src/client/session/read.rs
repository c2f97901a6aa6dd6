//! What the server answers, and what of it is tried again.

use std::sync::Arc;
use std::time::Duration;

use logdrive_raft::wire::Reader;

use super::{Session, lock};
use crate::client::Inner;
use crate::client::batch::{Answered, OutputCursor};
use crate::client::dispatch::Refused;
use crate::codec::{Keep, MessageReader, ReadFailure};
use crate::error::{CloseCode, Refusal};
use crate::protocol::{Code, RESPONSE_FRAME_BYTES_MAX, Response, next_response};

impl Session {
    /// Reads answers until the stream ends.
    pub(super) async fn read(
        &self,
        inner: &Arc<Inner>,
        number: usize,
        mut reader: MessageReader,
    ) -> Option<Refusal> {
        let mut answers = Vec::new();
        let mut refused = Vec::new();
        loop {
            // Who gets the outputs may keep them for a while.
            let frame = match reader.next(RESPONSE_FRAME_BYTES_MAX, Keep::Long).await {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(ReadFailure::Stream(_)) => return None,
                Err(error) => return Some(Refusal::new(CloseCode::Malformed, error.to_string())),
            };
            self.was_useful(inner.next_use());
            let mut input = Reader::new(&frame);
            while input.left() > 0 {
                let response = match next_response(&mut input) {
                    Ok(response) => response,
                    Err(error) => {
                        return Some(Refusal::new(
                            CloseCode::Malformed,
                            format!("response: {error}"),
                        ));
                    }
                };
                match response {
                    Response::Applied {
                        first_id,
                        index,
                        first_slot,
                        outputs,
                    } => {
                        let count =
                            u32::try_from(outputs.len()).expect("a count on the wire is u32");
                        let mut outputs = OutputCursor::new(&frame, outputs);
                        lock(&self.ring).take(first_id, count, |part, behind| {
                            let what = Answered::Applied {
                                index,
                                first_slot: first_slot + behind,
                                outputs: outputs.part(behind, part.count),
                            };
                            inner.answer(part, what, &mut answers);
                        });
                    }
                    Response::NeverAppended {
                        first_id,
                        count,
                        code,
                        retry_after_ms,
                        hint,
                    } => lock(&self.ring).take(first_id, count, |part, _| {
                        if is_worth_another_try(code) {
                            refused.push((
                                part,
                                Refused {
                                    code,
                                    retry_after: Duration::from_millis(u64::from(retry_after_ms)),
                                    hint: hint.clone(),
                                },
                            ));
                        } else {
                            inner.answer(part, Answered::NeverAppended { code }, &mut answers);
                        }
                    }),
                    Response::MayYetCommit {
                        first_id,
                        count,
                        code,
                    } => lock(&self.ring).take(first_id, count, |part, _| {
                        inner.answer(part, Answered::MayYetCommit { code }, &mut answers);
                    }),
                    // Nobody asks for it on this connection.
                    Response::Json { .. } => {}
                }
            }
            for (part, why) in refused.drain(..) {
                inner.refused(part, number, why);
            }
            inner.deliver(&mut answers);
        }
    }
}

/// Whether the same proposal may be taken a little later, here or elsewhere.
fn is_worth_another_try(code: Code) -> bool {
    // The last two are final where they come from, and nowhere else.
    matches!(
        code,
        Code::NOT_LEADER | Code::BUSY | Code::STORAGE_FULL | Code::HALTED | Code::SHUTTING_DOWN
    )
}
