//! Bytes between machines.

#![deny(missing_docs)]

pub mod ca;
pub mod codec;
pub mod decoders;
pub mod endpoint;
pub mod error;
pub mod hello;
pub mod identity;
mod limit;
pub mod peers;
pub mod secret;
pub mod socket;
pub mod tls;

pub use endpoint::{MtuProfile, TransportSettings};
pub use error::{CloseCode, LinkError, NetError};
pub use identity::{ClusterName, Identity, Role};
pub use peers::{PeerEvent, PeerLinkStatus, PeerNet, PeerNetConfig, SendError};
pub use secret::NetSecret;
pub use tls::{Credentials, TlsError};
