//! Accepting connections: one loop, whatever is then said on them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use quinn::Incoming;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Connection, Endpoint};
use crate::error::Refusal;

/// What a port does with those who come.
pub(crate) trait Serve: 'static {
    /// Talks until the connection ends, or there is a reason to end it. Whatever goes wrong on it ends it,
    /// and touches nothing else.
    fn talk(self: Rc<Self>, connection: Connection) -> impl Future<Output = Result<(), Refusal>>;

    /// A connection from `address` was closed for this reason.
    fn refused(&self, address: SocketAddr, refusal: &Refusal);
}

/// Accepts connections until the endpoint is closed, at most so many at once.
pub(crate) async fn accept<S: Serve>(endpoint: Endpoint, connections_max: usize, server: Rc<S>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.0.accept() => match incoming {
                None => return,
                Some(incoming) if connections.len() >= connections_max => incoming.refuse(),
                Some(incoming) => {
                    connections.spawn_local(serve(Rc::clone(&server), incoming));
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve<S: Serve>(server: Rc<S>, incoming: Incoming) {
    let address = incoming.remote_address();
    // What fails before the handshake is through, the other side is told by TLS.
    let Ok(connecting) = incoming.accept() else {
        return;
    };
    let Ok(Ok(connection)) = timeout(HANDSHAKE, connecting).await else {
        return;
    };
    let connection = Connection(connection);
    let Err(refusal) = Rc::clone(&server).talk(connection.clone()).await else {
        return;
    };
    refusal.close(&connection);
    server.refused(address, &refusal);
}

const HANDSHAKE: Duration = Duration::from_secs(1);
