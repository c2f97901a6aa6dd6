#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod address;
mod backoff;
pub mod ca;
pub mod client;
pub mod clients;
pub mod codec;
pub mod decoders;
pub mod echo;
pub mod error;
pub mod hello;
pub mod identity;
mod limit;
mod mailbox;
pub mod memory;
pub mod peers;
pub mod protocol;
pub mod responses;
pub mod secret;
mod task;
pub mod tls;
pub mod transport;

pub use client::{
    Answer, AnswerSink, Answered, Applied, Batch, Client, ClientOptions, ConnectError,
    ProposeError, SubmitError,
};
pub use clients::{ClientEvent, ClientNet, ClientNetConfig, ConnectionId};
pub use error::{CloseCode, LinkError, NetError};
pub use identity::{ClusterName, Identity, Role};
pub use memory::{ClientMemory, PeerMemory};
pub use peers::{PeerEvent, PeerLinkStatus, PeerNet, PeerNetConfig, SendError};
pub use protocol::{Code, ProposeBatch};
pub use responses::{ResponseBatch, ResponseQueue};
pub use secret::NetSecret;
pub use tls::{Credentials, TlsError};
pub use transport::{Listen, MtuProfile, TransportSettings};
