//! Whether a server that should have answered is still there.
//!
//! Whatever is sent is acknowledged within milliseconds by whoever lives, long before QUIC gives a
//! connection up. Silence proves nothing, the network may be slow, so nothing is done that cannot be undone:
//! what has not been sent goes elsewhere, what has been sent stays and waits.

/// How much has been sent and received, looked at once a tick.
#[derive(Debug, Default)]
pub(super) struct Silence {
    received: u64,
    sent_when_heard: u64,
    /// Ticks since something was sent to which nothing has come.
    ticks: u32,
}

impl Silence {
    /// Looks at the packets counted so far. `rtt_ticks` is how long an answer takes at the best of times.
    ///
    /// Ticks are counted and not time: while this process did not run it could hear nobody.
    pub(super) fn tick(&mut self, sent: u64, received: u64, rtt_ticks: u32) -> bool {
        if received != self.received {
            self.received = received;
            self.sent_when_heard = sent;
            self.ticks = 0;
        } else if sent != self.sent_when_heard {
            self.ticks = self.ticks.saturating_add(1);
        }
        self.ticks >= SILENT_TICKS.max(rtt_ticks.saturating_mul(3))
    }
}

/// So many ticks without an answer are a silence. Somewhat above the hiccups of a busy machine, well below
/// an election timeout: before others have elected a leader there is nowhere else to go.
const SILENT_TICKS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Ticks until silence, in which a packet is sent each `every` ticks and none comes.
    fn until_silent(silence: &mut Silence, every: u64, rtt_ticks: u32) -> u32 {
        let sent = silence.sent_when_heard;
        let received = silence.received;
        (1..)
            .find(|tick| silence.tick(sent + u64::from(*tick) / every, received, rtt_ticks))
            .unwrap()
    }

    #[test]
    fn who_was_asked_and_says_nothing_is_silent() {
        let mut silence = Silence::default();
        assert!(!silence.tick(5, 5, 0));
        assert_eq!(until_silent(&mut silence, 1, 0), SILENT_TICKS);
        // A single packet lifts it.
        assert!(!silence.tick(50, 6, 0));
        assert_eq!(until_silent(&mut silence, 7, 0), 6 + SILENT_TICKS);
    }

    #[test]
    fn who_was_not_asked_is_not_silent() {
        let mut silence = Silence::default();
        assert!((0..1_000).all(|_| !silence.tick(9, 9, 0)));
    }

    #[test]
    fn who_is_far_away_is_given_time() {
        let mut silence = Silence::default();
        silence.tick(1, 1, 20);
        assert_eq!(until_silent(&mut silence, 1, 20), 60);
    }
}
