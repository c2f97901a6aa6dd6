//! What waits becomes frames: of one group each, and as large as QUIC likes to be handed them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use logdrive_raft::GroupId;
use logdrive_raft::limits::ENTRY_PAYLOAD_BYTES_MAX;
use tokio::time::Instant;

use super::{Session, lock};
use crate::client::batch::Part;
use crate::error::Refusal;
use crate::protocol::{FRAME_PROPOSALS_MAX, put_proposals};
use crate::transport::SendStream;

impl Session {
    /// Sends what waits, while the other side is heard: what is sent into a silence can never be taken back.
    pub(super) async fn write(&self, mut send: SendStream) -> Option<Refusal> {
        loop {
            self.something_waits().await;
            self.heard().await;
            while !self.is_silent()
                && let Some(bytes) = self.take_frames()
            {
                if send.write_chunk(bytes).await.is_err() {
                    return None;
                }
            }
        }
    }

    /// Puts what waits into frames, up to a size, and remembers it as sent.
    fn take_frames(&self) -> Option<Bytes> {
        let mut queue = self.queue();
        let mut ring = lock(&self.ring);
        let now = Instant::now();
        let mut out = BytesMut::new();
        while out.len() < WRITE_BYTES_MAX && !queue.is_empty() {
            let parts = take_frame(&mut queue);
            let Some(first) = parts.first() else {
                break;
            };
            let latest = parts.iter().map(Part::deadline).max().unwrap_or(now);
            let left = latest.saturating_duration_since(now).as_millis();
            let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
            let payloads: Vec<&[u8]> = parts.iter().flat_map(Part::payloads).collect();
            out.reserve(
                64 + 4 * payloads.len() + parts.iter().map(Part::payload_bytes).sum::<usize>(),
            );
            let first_id = ring.next_id();
            put_proposals(
                &mut out,
                first_id,
                first.group(),
                deadline_ms,
                payloads.into_iter(),
            );
            for part in parts {
                ring.push(part);
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }
}

/// Takes the parts for one frame: of one group, and as many as fit into it.
fn take_frame(queue: &mut VecDeque<Part>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut group: Option<GroupId> = None;
    let (mut count, mut bytes) = (0, 0);
    while let Some(part) = queue.front_mut() {
        if group.is_some_and(|group| group != part.group()) {
            break;
        }
        group = Some(part.group());
        let mut fitting = 0;
        let (mut count_after, mut bytes_after) = (count, bytes);
        for payload in part.payloads() {
            // A large payload travels alone.
            let first = count_after == 0;
            let fits =
                count_after < FRAME_PROPOSALS_MAX && bytes_after + payload.len() <= WRITE_BYTES_MAX;
            if !first && !fits {
                break;
            }
            count_after += 1;
            bytes_after += payload.len();
            fitting += 1;
        }
        (count, bytes) = (count_after, bytes_after);
        if fitting == 0 {
            break;
        }
        if fitting == part.count {
            parts.extend(queue.pop_front());
        } else {
            parts.push(part.split_front(fitting));
            break;
        }
    }
    parts
}

/// About how much is handed to QUIC at once. One proposal may be larger.
const WRITE_BYTES_MAX: usize = 256 << 10;

const _: () = {
    // What is put into one frame fits into it, also a payload of the largest size, alone.
    assert!(WRITE_BYTES_MAX <= ENTRY_PAYLOAD_BYTES_MAX);
};
