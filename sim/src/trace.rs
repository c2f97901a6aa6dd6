//! What happened, in order: as a number always, as a story when somebody listens.

use logdrive_raft::message::{Body, Repair, Transfer};
use logdrive_raft::{Entry, Message, Micros};

/// The events of a run.
pub(crate) struct Trace<'a> {
    /// How many there were.
    pub(crate) events: u64,
    /// All of them, in order.
    pub(crate) hash: u64,
    tell: Option<&'a mut Tell<'a>>,
}

/// Whoever listens to the story of a run.
pub(crate) type Tell<'a> = dyn FnMut(Micros, &str) + 'a;

impl Default for Trace<'_> {
    fn default() -> Self {
        Self {
            events: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            tell: None,
        }
    }
}

impl<'a> Trace<'a> {
    pub(crate) fn told(tell: &'a mut Tell<'a>) -> Self {
        Self {
            tell: Some(tell),
            ..Self::default()
        }
    }

    /// An event: a delivery, a call or an answer of a client.
    pub(crate) fn event(
        &mut self,
        now: Micros,
        kind: u64,
        words: [u64; 3],
        text: impl FnOnce() -> String,
    ) {
        self.events += 1;
        self.note(now, kind, words, text);
    }

    /// So many events that nobody has to be told of: completions of a disk, a timer that did something.
    pub(crate) fn count(&mut self, now: Micros, node: u64, events: u64) {
        if events > 0 {
            self.events += events;
            self.mix(now, 12, [node, events, 0]);
        }
    }

    /// Something that is no event by itself. The text is made only if somebody listens.
    pub(crate) fn note(
        &mut self,
        now: Micros,
        kind: u64,
        words: [u64; 3],
        text: impl FnOnce() -> String,
    ) {
        self.mix(now, kind, words);
        self.tell(now, text);
    }

    fn mix(&mut self, now: Micros, kind: u64, words: [u64; 3]) {
        for word in [now.0, kind, words[0], words[1], words[2]] {
            self.hash = (self.hash ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29);
        }
    }

    /// Says something to whoever listens, and only to them.
    pub(crate) fn tell(&mut self, now: Micros, text: impl FnOnce() -> String) {
        if let Some(tell) = &mut self.tell {
            tell(now, &text());
        }
    }

    /// Whether anybody listens.
    pub(crate) fn is_told(&self) -> bool {
        self.tell.is_some()
    }

    /// A text as a number (FNV-1a).
    pub(crate) fn digest_text(text: &str) -> u64 {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
    }

    /// A message as a number.
    pub(crate) fn digest(message: &Message) -> u64 {
        match &message.body {
            Body::VoteRequest(body) => 1 << 60 | body.last.index.0 ^ body.last.term.0 << 32,
            Body::VoteReply(body) => 2 << 60 | u64::from(body.granted),
            Body::Append(body) => {
                let last = body
                    .entries
                    .last()
                    .map_or(0, |entry| entry.header().chain.0);
                3 << 60 ^ body.prev.index.0 ^ last as u64
            }
            Body::Ack(body) => 4 << 60 ^ body.index.0 ^ body.chain.0 as u64,
            Body::Reject(body) => 5 << 60 ^ body.prev_index.0,
            Body::Heartbeat(body) => 6 << 60 ^ body.commit.index.0 ^ body.round.0 << 32,
            Body::HeartbeatReply(body) => 7 << 60 ^ body.round.0,
            Body::GenesisQuery(body) => 8 << 60 ^ body.question,
            Body::GenesisReply(body) => 9 << 60 ^ body.question,
            Body::GenesisOffer(_) => 10 << 60,
            Body::Behind(body) => 11 << 60 ^ body.base.index.0 ^ body.round.0 << 32,
            Body::SettleQuery(body) => 14 << 60 ^ body.guard.term.0,
            Body::SettleReply(body) => 15 << 60 ^ body.last.index.0 ^ u64::from(body.whole) << 32,
            Body::Repair(_) => 13 << 60 ^ Self::digest_text(&Self::message(message)) >> 4,
            Body::Transfer(_) => 12 << 60 ^ Self::digest_text(&Self::message(message)) >> 4,
        }
    }

    /// A message in words.
    pub(crate) fn message(message: &Message) -> String {
        let (group, term) = (message.group, message.term);
        let said = match &message.body {
            Body::VoteRequest(body) => format!("vote? pre={} last={}", body.pre, body.last),
            Body::VoteReply(body) => format!("vote pre={} granted={}", body.pre, body.granted),
            Body::Append(body) => {
                let last = body.entries.last().map(Entry::index);
                format!(
                    "append prev={} +{} to {last:?} commit={} session={:?}",
                    body.prev,
                    body.entries.len(),
                    body.commit.index,
                    body.session
                )
            }
            Body::Ack(body) => format!("ack {} session={:?}", body.index, body.session),
            Body::Reject(body) => format!("reject prev={} hint={}", body.prev_index, body.hint),
            Body::Heartbeat(body) => {
                format!(
                    "heartbeat commit={} last={}",
                    body.commit.index, body.last_index
                )
            }
            Body::HeartbeatReply(body) => format!("heartbeat ok round={}", body.round),
            Body::GenesisQuery(_) => "genesis?".to_owned(),
            Body::GenesisReply(body) => format!("genesis known={}", body.genesis.is_some()),
            Body::GenesisOffer(_) => "genesis".to_owned(),
            Body::Behind(body) => format!("behind base={}", body.base),
            Body::SettleQuery(body) => format!("settle? guard={}", body.guard),
            Body::SettleReply(body) => format!("settle last={} whole={}", body.last, body.whole),
            Body::Transfer(Transfer::Part { part, bytes, .. }) => {
                format!("snapshot {part:?} bytes={}", bytes.len())
            }
            Body::Transfer(transfer) => format!("snapshot {transfer:?}"),
            Body::Repair(Repair::Have { wanted, bytes }) => {
                format!("repair {wanted:?} bytes={}", bytes.len())
            }
            Body::Repair(repair) => format!("repair {repair:?}"),
        };
        format!("group {group} term {term} {said}")
    }
}
