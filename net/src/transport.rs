//! QUIC, and everything that names its implementation. The rest of the crate knows only what is here.

pub(crate) mod accept;
mod connection_id;
pub(crate) mod endpoint;
mod settings;
mod socket;

pub(crate) use self::settings::Windows;
pub use self::settings::{MtuProfile, TransportSettings};
pub use self::socket::{Listen, SOCKET_BUFFER_BYTES, SOCKET_BUFFER_BYTES_MIN, SocketBuffers};
