//! QUIC, and everything that names the library behind it. The rest of the crate knows only what is here.
//!
//! Newtypes with the operations that the lanes use, and no trait: there is one implementation. Another one,
//! a driver of our own over the same protocol, would replace what is in this module.

mod accept;
mod connection;
mod connection_id;
mod endpoint;
mod error;
mod settings;
mod socket;
mod tls;

pub(crate) use self::accept::{Serve, accept};
pub(crate) use self::connection::{Connection, RecvStream, SendStream};
pub(crate) use self::endpoint::{Bound, ConnectionConfig, Endpoint, ServerConfig};
pub(crate) use self::error::{ConnectionError, ReadError, WriteError};
pub use self::settings::{MtuProfile, TransportSettings};
pub(crate) use self::settings::{SEND_WINDOW_BYTES, Windows};
pub use self::socket::{Listen, SOCKET_BUFFER_BYTES, SOCKET_BUFFER_BYTES_MIN, SocketBuffers};
pub(crate) use self::tls::{ClientTls, ServerTls};
