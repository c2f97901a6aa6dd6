//! Accepting connections: one loop, whatever is then said on them.

use std::net::SocketAddr;
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
    let mut handshakes = JoinSet::new();
    let mut served = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.0.accept() => {
                let Some(incoming) = incoming else {
                    return;
                };
                if let Some(incoming) = admit(incoming, handshakes.len()) {
                    handshakes.spawn_local(shake_hands(incoming));
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

/// Lets somebody begin a handshake, or sends them away, or to prove their address.
fn admit(incoming: Incoming, under_way: usize) -> Option<Incoming> {
    if under_way >= HANDSHAKES_UNPROVEN_MAX && !incoming.remote_address_validated() {
        // Only a packet that has brought a token already may not be asked for one, and it is validated then.
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return None;
    }
    if under_way >= HANDSHAKES_MAX {
        incoming.refuse();
        return None;
    }
    Some(incoming)
}

async fn shake_hands(incoming: Incoming) -> Option<(SocketAddr, Connection)> {
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
