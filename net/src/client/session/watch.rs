//! What time does: deadlines, a server that falls silent, and dialling that takes long.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use super::{Health, Session, TICK, lock};
use crate::client::Inner;
use crate::client::batch::{Answer, Answered};
use crate::client::silence::Silence;
use crate::protocol::Code;
use crate::transport::Connection;

impl Session {
    /// Answers what was not answered in time.
    pub(super) async fn expire(&self, inner: &Arc<Inner>) {
        let mut ticks = interval(TICK);
        let mut answers = Vec::new();
        loop {
            ticks.tick().await;
            let now = Instant::now();
            lock(&self.ring).expire(now, |part| {
                let code = Code::DEADLINE;
                inner.answer(part, Answered::MayYetCommit { code }, &mut answers);
            });
            self.take_expired(inner, now, &mut answers);
            inner.deliver(&mut answers);
        }
    }

    /// Watches for silence. What waits is then tried elsewhere; what was sent waits for its answer, or for
    /// the end of the connection.
    pub(super) async fn listen(&self, inner: &Arc<Inner>, number: usize, connection: &Connection) {
        let mut silence = Silence::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let stats = connection.stats();
            let rtt_ticks = stats.rtt.as_millis() / TICK.as_millis();
            let rtt_ticks = u32::try_from(rtt_ticks).unwrap_or(u32::MAX);
            let silent = silence.tick(stats.sent_datagrams, stats.received_datagrams, rtt_ticks);
            if silent != self.is_silent() {
                self.set_health(if silent { Health::Silent } else { Health::Up });
            }
            if silent && inner.has_alternative(number) {
                self.hand_back(inner, number);
            }
        }
    }

    /// While an address is dialled: answers what could not be sent in time, and has the rest tried
    /// elsewhere if it takes long. A server that lives answers in milliseconds, one that was killed never.
    pub(super) async fn hand_back_queued(&self, inner: &Arc<Inner>, number: usize) {
        let impatient = async {
            let mut ticks = interval_at(Instant::now() + DIAL_PATIENCE, TICK);
            loop {
                ticks.tick().await;
                self.set_health(Health::Down);
                if inner.has_alternative(number) {
                    self.hand_back(inner, number);
                }
            }
        };
        tokio::select! {
            () = self.expire_queued(inner) => {}
            () = impatient => {}
        }
    }

    /// Answers what could not be sent in time, and never ends.
    pub(super) async fn expire_queued(&self, inner: &Arc<Inner>) {
        let mut ticks = interval(TICK);
        let mut answers = Vec::new();
        loop {
            ticks.tick().await;
            self.take_expired(inner, Instant::now(), &mut answers);
            inner.deliver(&mut answers);
        }
    }

    fn take_expired(&self, inner: &Arc<Inner>, now: Instant, answers: &mut Vec<Answer>) {
        self.queue().retain(|part| {
            let waits = part.deadline() > now;
            if !waits {
                // Whoever was refused all the time wants to hear of that, and not that it took long.
                let code = part.refused.unwrap_or(Code::DEADLINE);
                inner.answer(part.clone(), Answered::NeverAppended { code }, answers);
            }
            waits
        });
    }
}

/// How long what waits for a connection waits before it is tried elsewhere. Dialling goes on.
const DIAL_PATIENCE: Duration = Duration::from_millis(100);
