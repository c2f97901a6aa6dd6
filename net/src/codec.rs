//! Messages on streams: a length (u32, little endian), then that many bytes.
//!
//! Written as few large chunks, read into one contiguous buffer a message.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use logdrive_raft::limits::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX};
use logdrive_raft::message::{Body, Message, PART_BYTES_MAX};
use logdrive_raft::wire::{Encode, Writer};

use crate::memory::{Holding, Tally};
use crate::transport::{ReadError, RecvStream, SEND_WINDOW_BYTES};

/// The bytes of the length before each message.
pub const LENGTH_BYTES: usize = 4;

/// The most bytes of a message on the control stream. A genesis with the most members is the longest.
pub const CONTROL_BYTES_MAX: usize = 64 << 10;

/// The most bytes of a message on the ack stream.
pub const ACK_BYTES_MAX: usize = 1 << 10;

/// The most bytes of a message on an append stream.
pub const APPEND_MESSAGE_BYTES_MAX: usize = HEAD_BYTES + 4 * APPEND_ENTRIES_MAX + APPEND_BYTES_MAX;

/// The most bytes of a message on the snapshot stream.
pub const PART_MESSAGE_BYTES_MAX: usize = HEAD_BYTES + PART_BYTES_MAX;

/// More than everything of an append before the lengths of its frames takes.
const HEAD_BYTES: usize = 512;

/// Frames up to this size are copied into a chunk with their neighbours; larger ones travel as they are.
///
/// QUIC walks its unacknowledged chunks from the front for each packet, so chunks have to be few: as many as
/// are asserted here, and between two large frames the lengths that lie before the second.
const COPY_BYTES_MAX: usize = 32 << 10;
const _: () = assert!(SEND_WINDOW_BYTES as usize / COPY_BYTES_MAX <= 64);

/// A message at least this long that lies in one received chunk is not copied out of it. A chunk is part
/// of a buffer of at most 64 KiB, so it pins at most twice its size.
const SHARE_BYTES_MIN: usize = 32 << 10;

/// Whether what is decoded from a message keeps pointing into its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// No: the bytes are dropped right away.
    Briefly,
    /// Yes, perhaps for long: the bytes must not pin what else came with them.
    Long,
}

/// Why no further message could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFailure {
    /// The stream or its connection broke.
    #[error("read")]
    Stream(#[from] ReadError),
    /// A message is longer than it may be.
    #[error("message of {length} bytes is longer than {max}")]
    TooLong { length: usize, max: usize },
    /// The stream ended within a message.
    #[error("stream ends within a message")]
    Cut,
}

/// Encodes one value as a message.
pub(crate) fn framed(value: &impl Encode) -> Bytes {
    let mut buffer = BytesMut::with_capacity(256);
    put_framed(value, &mut buffer);
    buffer.freeze()
}

/// Appends one value as a message.
pub(crate) fn put_framed(value: &impl Encode, buffer: &mut BytesMut) {
    let start = begin(buffer);
    value.encode(&mut Writer::new(buffer));
    end(buffer, start, 0);
}

/// Appends messages as chunks to write: small ones together, large frames as they are, uncopied.
pub(crate) fn put_messages(messages: &[Message], chunks: &mut Vec<Bytes>) {
    let small: usize = messages.iter().map(small_bytes).sum();
    let mut buffer = BytesMut::with_capacity(small);
    for message in messages {
        let start = begin(&mut buffer);
        message.encode_head(&mut Writer::new(&mut buffer));
        let Body::Append(append) = &message.body else {
            end(&mut buffer, start, 0);
            continue;
        };
        let frames = append.entries.iter().map(|entry| entry.frame().len()).sum();
        end(&mut buffer, start, frames);
        for entry in &append.entries {
            let frame = entry.frame();
            if frame.len() <= COPY_BYTES_MAX {
                buffer.put_slice(frame);
            } else {
                if !buffer.is_empty() {
                    chunks.push(buffer.split().freeze());
                }
                chunks.push(frame.clone());
            }
        }
    }
    if !buffer.is_empty() {
        chunks.push(buffer.freeze());
    }
}

/// About how many bytes of a message are copied.
fn small_bytes(message: &Message) -> usize {
    let Body::Append(append) = &message.body else {
        return 256;
    };
    let frames = append.entries.iter().map(|entry| entry.frame().len());
    let copied: usize = frames.filter(|length| *length <= COPY_BYTES_MAX).sum();
    256 + 4 * append.entries.len() + copied
}

fn begin(buffer: &mut BytesMut) -> usize {
    buffer.put_u32_le(0);
    buffer.len()
}

fn end(buffer: &mut BytesMut, start: usize, follows: usize) {
    let length = buffer.len() - start + follows;
    let length = u32::try_from(length).expect("limits keep every message below 4 GiB");
    buffer[start - LENGTH_BYTES..start].copy_from_slice(&length.to_le_bytes());
}

/// Reads messages off a stream.
#[derive(Debug)]
pub(crate) struct MessageReader {
    stream: RecvStream,
    /// What has been received and not read yet. The first chunk is never empty.
    chunks: VecDeque<Bytes>,
    buffered: usize,
    /// How many chunks are taken at once: what a slow reader holds is bounded by more than the window.
    chunks_at_once: usize,
    /// Counts what is held here: what was received and is not read yet, and the message given out last.
    holding: Holding,
}

impl MessageReader {
    /// Reads from the front of `stream`, whose chunks have up to `mtu` bytes. What it holds counts as part
    /// of `tally`.
    pub(crate) fn new(stream: RecvStream, mtu: u16, tally: &Tally) -> Self {
        let chunks_at_once = (READ_BYTES_MAX / usize::from(mtu.max(1))).clamp(1, CHUNKS_MAX);
        Self {
            stream,
            chunks: VecDeque::new(),
            buffered: 0,
            chunks_at_once,
            holding: tally.holder(),
        }
    }

    /// The next message; `None` if the stream has ended before it. Not to be cancelled and called again.
    pub(crate) async fn next(
        &mut self,
        max: usize,
        keep: Keep,
    ) -> Result<Option<Bytes>, ReadFailure> {
        self.holding.set(self.buffered);
        while self.buffered < LENGTH_BYTES {
            if !self.fill().await? {
                return if self.buffered == 0 {
                    Ok(None)
                } else {
                    Err(ReadFailure::Cut)
                };
            }
        }
        let mut length = [0; LENGTH_BYTES];
        self.copy_to(&mut length);
        let length = u32::from_le_bytes(length) as usize;
        // Before anything is allocated.
        if length > max {
            return Err(ReadFailure::TooLong { length, max });
        }
        self.holding.set(length.max(self.buffered));
        if self.buffered < length || self.chunks.front().is_none_or(|c| c.len() < length) {
            return self.gather(length).await.map(Some);
        }
        let pins = keep == Keep::Long && length < SHARE_BYTES_MIN;
        let front = self.chunks.front_mut().expect("checked above");
        let message = front.split_to(length);
        if front.is_empty() {
            self.chunks.pop_front();
        }
        self.buffered -= length;
        Ok(Some(if pins {
            Bytes::copy_from_slice(&message)
        } else {
            message
        }))
    }

    /// Tells the sender to stop.
    pub(crate) fn stop(&mut self, code: u32) {
        self.stream.stop(code);
    }

    /// A message that does not lie in one chunk, in a buffer of its own. The buffer is filled as bytes come,
    /// so a length alone costs address space, not memory.
    async fn gather(&mut self, length: usize) -> Result<Bytes, ReadFailure> {
        let mut message = BytesMut::with_capacity(length);
        loop {
            while message.len() < length {
                let Some(front) = self.chunks.front_mut() else {
                    break;
                };
                let take = front.len().min(length - message.len());
                message.put_slice(&front[..take]);
                front.advance(take);
                self.buffered -= take;
                if front.is_empty() {
                    self.chunks.pop_front();
                }
            }
            if message.len() == length {
                return Ok(message.freeze());
            }
            if !self.fill().await? {
                return Err(ReadFailure::Cut);
            }
        }
    }

    /// Waits for more bytes; false if the stream has ended.
    async fn fill(&mut self) -> Result<bool, ReadFailure> {
        let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
        let wanted = &mut chunks[..self.chunks_at_once];
        let Some(count) = self.stream.read_chunks(wanted).await? else {
            return Ok(false);
        };
        for chunk in chunks
            .into_iter()
            .take(count)
            .filter(|chunk| !chunk.is_empty())
        {
            self.buffered += chunk.len();
            self.chunks.push_back(chunk);
        }
        Ok(true)
    }

    fn copy_to(&mut self, target: &mut [u8]) {
        for byte in target {
            let front = self
                .chunks
                .front_mut()
                .expect("the caller has counted the bytes");
            *byte = front.get_u8();
            self.buffered -= 1;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}

/// The most bytes that a reader holds whose messages have at most `max` bytes: a message, and what came
/// with it.
pub(crate) fn reading_bytes_max(max: usize) -> usize {
    max + READ_BYTES_MAX
}

/// The most bytes that are taken off a stream at once.
const READ_BYTES_MAX: usize = 256 << 10;

/// The most chunks that are taken off a stream at once.
const CHUNKS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use logdrive_raft::entry::EntryBuilder;
    use logdrive_raft::message::{Append, CommitPoint, Heartbeat};
    use logdrive_raft::wire::Decode;
    use logdrive_raft::{
        Boot, Chain, Entry, GroupId, Index, LogPosition, NodeId, Replica, ReplicationSession,
        Round, Term,
    };
    use proptest::prelude::*;

    use super::*;

    fn entry(payload_bytes: usize) -> Entry {
        let mut builder = EntryBuilder::with_room(1, payload_bytes);
        builder.push(&vec![3; payload_bytes]);
        builder
            .finish()
            .seal(GroupId(1), Term(1), Index(1), Chain(0))
    }

    fn message(body: Body) -> Message {
        Message {
            from: Replica::default(),
            boot: Boot(1),
            to: NodeId(2),
            group: GroupId(1),
            term: Term(1),
            body,
        }
    }

    fn append(payloads: &[usize]) -> Message {
        message(Body::Append(Append {
            session: ReplicationSession::default(),
            prev: LogPosition::default(),
            entries: payloads.iter().map(|bytes| entry(*bytes)).collect(),
            commit: CommitPoint::default(),
            last_index: Index(1),
            round: Round(1),
            heard: None,
        }))
    }

    fn joined(chunks: &[Bytes]) -> Vec<u8> {
        chunks.iter().flatten().copied().collect()
    }

    #[test]
    fn large_frames_are_not_copied_and_small_ones_share_a_chunk() {
        let small: Vec<Message> = (0..50).map(|_| append(&[100, 1_000])).collect();
        let mut chunks = Vec::new();
        put_messages(&small, &mut chunks);
        assert_eq!(chunks.len(), 1);
        // Not more is allocated than is written, or the rest would stay pinned until the last ack.
        let written = chunks[0].len();
        let buffer = chunks.remove(0).try_into_mut().expect("nobody else has it");
        assert!(buffer.capacity() < 2 * written + 1024);

        let large = append(&[100, 200_000, 100]);
        let Body::Append(body) = &large.body else {
            unreachable!("made above");
        };
        let mut chunks = Vec::new();
        put_messages(std::slice::from_ref(&large), &mut chunks);
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1].as_ptr(), body.entries[1].frame().as_ptr());
        let bytes = joined(&chunks);
        assert_eq!(Message::from_bytes(&bytes[LENGTH_BYTES..]).unwrap(), large);
    }

    #[test]
    fn the_largest_append_fits_its_bound() {
        let one = append(&[1 << 20]);
        let bytes = framed(&one);
        assert!(bytes.len() - LENGTH_BYTES <= APPEND_MESSAGE_BYTES_MAX);
        let empty = framed(&append(&[]));
        assert!(empty.len() - LENGTH_BYTES <= HEAD_BYTES);
    }

    proptest! {
        #[test]
        fn messages_round_trip_through_chunks(
            sizes in proptest::collection::vec(
                proptest::collection::vec(0_usize..80_000, 0..4), 0..12),
        ) {
            let mut messages: Vec<Message> = sizes.iter().map(|sizes| append(sizes)).collect();
            messages.push(message(Body::Heartbeat(Heartbeat {
                commit: CommitPoint::default(),
                last_index: Index(7),
                round: Round(8),
                heard: None,
            })));
            let mut chunks = Vec::new();
            put_messages(&messages, &mut chunks);
            let mut rest = &joined(&chunks)[..];
            let mut read = Vec::new();
            while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
                let (bytes, after) = after.split_at(u32::from_le_bytes(*length) as usize);
                read.push(Message::from_bytes(bytes).unwrap());
                rest = after;
            }
            prop_assert!(read == messages);
        }
    }
}
