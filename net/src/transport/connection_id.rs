//! Connection ids, by which a node knows packets of its own former life.
//!
//! A packet of a connection that nobody knows is answered with a reset, if the id in it is recognisably one
//! of ours: so a node that was killed and started again is noticed at once. A connection that *this* life
//! has forgotten was closed, and the other side has been told why. A reset would only overtake that: QUIC
//! forgets a closed connection after milliseconds, and quinn reports a reset that comes together with the
//! reason in place of the reason.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid};

/// Makes ids that a later life of the node recognises, and this one does not.
pub(crate) struct LifeConnectionIds {
    inner: HashedConnectionIdGenerator,
    life: [u8; LIFE_BYTES],
}

impl LifeConnectionIds {
    /// `key` is the same in each life of a node, `life` in none.
    pub(crate) fn new(key: u64, life: u16) -> Self {
        Self {
            inner: HashedConnectionIdGenerator::from_key(key),
            life: life.to_le_bytes(),
        }
    }
}

impl ConnectionIdGenerator for LifeConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let id = self.inner.generate_cid();
        ConnectionId::new(&[&id[..], &self.life].concat())
    }

    /// Asked only of ids that belong to no connection.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_last_chunk() {
            Some((inner, life)) if *life != self.life => {
                self.inner.validate(&ConnectionId::new(inner))
            }
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        self.inner.cid_len() + LIFE_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.inner.cid_lifetime()
    }
}

/// If two lives are given the same number by chance, the restart is noticed by the idle timeout.
const LIFE_BYTES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_is_for_what_a_former_life_of_this_node_left_behind() {
        let mut former = LifeConnectionIds::new(7, 1);
        let mut now = LifeConnectionIds::new(7, 2);
        for _ in 0..100 {
            let id = former.generate_cid();
            assert_eq!(id.len(), now.cid_len());
            assert!(now.validate(&id).is_ok());
            let own = now.generate_cid();
            assert!(now.validate(&own).is_err());
            // Of another node, and of nobody.
            let other = LifeConnectionIds::new(8, 1).generate_cid();
            assert!(now.validate(&other).is_err());
            assert!(now.validate(&ConnectionId::new(&id[..9])).is_err());
            assert!(now.validate(&ConnectionId::new(&[])).is_err());
        }
    }
}
