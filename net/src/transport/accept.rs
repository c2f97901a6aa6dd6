//! Accepting connections: one loop, whatever is then said on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use quinn::Incoming;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Connection, Endpoint};
use crate::error::{CloseCode, Refusal};

/// What a port does with those who come.
pub(crate) trait Serve: 'static {
    /// Talks until the connection ends, or there is a reason to end it. Whatever goes wrong on it ends it,
    /// and touches nothing else.
    fn talk(self: Rc<Self>, connection: Connection) -> impl Future<Output = Result<(), Refusal>>;

    /// A connection from `address` was closed for this reason.
    fn refused(&self, address: SocketAddr, refusal: &Refusal);
}

/// Accepts connections until the endpoint is closed, and serves at most so many at once.
///
/// Handshakes under way are counted apart: anybody may begin one, and what strangers begin must not take the
/// place of peers. Who comes while several are under way proves its address first (RFC 9000 §8.1.2).
pub(crate) async fn accept<S: Serve>(endpoint: Endpoint, connections_max: usize, server: Rc<S>) {
    let hosts = Hosts::default();
    let mut handshakes = JoinSet::new();
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.0.accept() => {
                let Some(incoming) = incoming else {
                    return;
                };
                if let Some((incoming, place)) = admit(incoming, handshakes.len(), &hosts) {
                    handshakes.spawn_local(shake_hands(incoming, place));
                }
            }
            Some(ended) = handshakes.join_next() => {
                // One that failed, or panicked, leaves nothing behind.
                let Ok(Some((address, connection))) = ended else {
                    continue;
                };
                if served.len() < connections_max {
                    served.spawn_local(serve(Rc::clone(&server), address, connection));
                } else {
                    let what = format!("{connections_max} connections are served, which is as many as may be");
                    let refusal = Refusal::new(CloseCode::Busy, what);
                    refusal.close(&connection);
                    server.refused(address, &refusal);
                }
            }
            Some(_) = served.join_next() => {}
        }
    }
}

/// Handshakes under way, by the host they come from.
type Hosts = Rc<RefCell<BTreeMap<IpAddr, usize>>>;

/// A handshake under way, as its host's count has it.
struct Place(Hosts, IpAddr);

impl Place {
    fn take(hosts: &Hosts, host: IpAddr) -> Self {
        *hosts.borrow_mut().entry(host).or_default() += 1;
        Self(Rc::clone(hosts), host)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut hosts = self.0.borrow_mut();
        if let Entry::Occupied(mut count) = hosts.entry(self.1) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What becomes of somebody who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Handshake,
    /// The address has to be proved first. Nothing is kept of it until then.
    Retry,
    Refuse,
}

/// While `under_way` handshakes are, `of_host` of them from the same host, whose address is `proved` or not.
fn admission(proved: bool, under_way: usize, of_host: usize) -> Admission {
    if !proved && under_way >= HANDSHAKES_UNPROVEN_MAX {
        Admission::Retry
    } else if under_way < HANDSHAKES_MAX {
        Admission::Handshake
    } else if of_host < HANDSHAKES_A_HOST_MIN && under_way < 2 * HANDSHAKES_MAX {
        // Whoever fills all places with an address of their own keeps no other host out.
        Admission::Handshake
    } else {
        Admission::Refuse
    }
}

/// Lets somebody begin a handshake, or sends them away, or to prove their address.
fn admit(incoming: Incoming, under_way: usize, hosts: &Hosts) -> Option<(Incoming, Place)> {
    let host = incoming.remote_address().ip();
    let of_host = hosts.borrow().get(&host).copied().unwrap_or(0);
    match admission(incoming.remote_address_validated(), under_way, of_host) {
        Admission::Handshake => Some((incoming, Place::take(hosts, host))),
        Admission::Retry => {
            // Only a packet that has brought a token may not be asked for one, and it is validated then.
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            None
        }
        Admission::Refuse => {
            incoming.refuse();
            None
        }
    }
}

async fn shake_hands(incoming: Incoming, _place: Place) -> Option<(SocketAddr, Connection)> {
    let address = incoming.remote_address();
    // What fails before the handshake is through, the other side is told by TLS.
    let connecting = incoming.accept().ok()?;
    let connection = timeout(HANDSHAKE, connecting).await.ok()?.ok()?;
    Some((address, Connection(connection)))
}

async fn serve<S: Serve>(server: Rc<S>, address: SocketAddr, connection: Connection) {
    let Err(refusal) = Rc::clone(&server).talk(connection.clone()).await else {
        return;
    };
    refusal.close(&connection);
    server.refused(address, &refusal);
}

const HANDSHAKE: Duration = Duration::from_secs(1);

/// Handshakes under way at once, of all who come.
const HANDSHAKES_MAX: usize = 64;

/// Of them, those whose address nobody has proved.
const HANDSHAKES_UNPROVEN_MAX: usize = 16;

/// What every host may have of them, though the places of all are taken.
const HANDSHAKES_A_HOST_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_takes_every_place_keeps_no_other_out() {
        assert_eq!(admission(false, 15, 15), Admission::Handshake);
        assert_eq!(admission(false, 16, 0), Admission::Retry);
        assert_eq!(admission(false, 500, 0), Admission::Retry);
        assert_eq!(admission(true, 63, 63), Admission::Handshake);
        assert_eq!(admission(true, 64, 64), Admission::Refuse);
        assert_eq!(admission(true, 64, 7), Admission::Handshake);
        assert_eq!(admission(true, 64, 8), Admission::Refuse);
        assert_eq!(admission(true, 128, 0), Admission::Refuse);
    }

    #[test]
    fn a_handshake_that_ends_gives_its_place_back() {
        let hosts = Hosts::default();
        let host = IpAddr::from([127, 0, 0, 1]);
        let places = [Place::take(&hosts, host), Place::take(&hosts, host)];
        assert_eq!(hosts.borrow()[&host], 2);
        drop(places);
        assert!(hosts.borrow().is_empty());
    }
}
