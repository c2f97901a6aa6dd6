//! What clients and servers say first.

use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};
use logdrive_raft::{ClusterId, NodeId};

use crate::hello::{PROTOCOL_MAX, PROTOCOL_MIN, check_versions};

/// What a client says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientGreeting {
    /// Features the server may ignore.
    pub compatible: u32,
    /// The cluster it means; 0 if it does not know.
    pub cluster: ClusterId,
    /// Its number, as in its certificate.
    pub client: NodeId,
}

/// What a server answers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerGreeting {
    /// Features the client may ignore.
    pub compatible: u32,
    /// The cluster it serves.
    pub cluster: ClusterId,
    /// Its number.
    pub node: NodeId,
}

impl Encode for ClientGreeting {
    fn encode(&self, out: &mut Writer<'_>) {
        encode_greeting(
            out,
            CLIENT_MAGIC,
            self.compatible,
            self.cluster,
            self.client,
        );
    }
}

impl Encode for ServerGreeting {
    fn encode(&self, out: &mut Writer<'_>) {
        encode_greeting(out, SERVER_MAGIC, self.compatible, self.cluster, self.node);
    }
}

impl Decode for ClientGreeting {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (compatible, cluster, client) = decode_greeting(input, CLIENT_MAGIC)?;
        Ok(Self {
            compatible,
            cluster,
            client,
        })
    }
}

impl Decode for ServerGreeting {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (compatible, cluster, node) = decode_greeting(input, SERVER_MAGIC)?;
        Ok(Self {
            compatible,
            cluster,
            node,
        })
    }
}

fn encode_greeting(
    out: &mut Writer<'_>,
    magic: u32,
    compatible: u32,
    cluster: ClusterId,
    node: NodeId,
) {
    magic.encode(out);
    PROTOCOL_MIN.encode(out);
    PROTOCOL_MAX.encode(out);
    0_u32.encode(out);
    compatible.encode(out);
    cluster.encode(out);
    node.encode(out);
}

fn decode_greeting(
    input: &mut Reader<'_>,
    magic: u32,
) -> Result<(u32, ClusterId, NodeId), DecodeError> {
    let found = u32::decode(input)?;
    if found != magic {
        return Err(DecodeError::Invalid {
            what: "greeting magic",
            value: u64::from(found),
        });
    }
    let protocol_min = u16::decode(input)?;
    let protocol_max = u16::decode(input)?;
    let incompatible = u32::decode(input)?;
    let compatible = u32::decode(input)?;
    check_versions("greeting", protocol_min, protocol_max, incompatible)?;
    let greeting = (compatible, Decode::decode(input)?, Decode::decode(input)?);
    if protocol_max > PROTOCOL_MAX {
        input.raw(input.left())?;
    }
    Ok(greeting)
}

const CLIENT_MAGIC: u32 = u32::from_le_bytes(*b"LDcl");
const SERVER_MAGIC: u32 = u32::from_le_bytes(*b"LDsv");
