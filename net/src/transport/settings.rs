//! What of a transport may be set, and the windows that follow from it.

use std::time::Duration;

use super::socket::SOCKET_BUFFER_BYTES;

/// How large packets are. One value for all nodes of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtuProfile {
    /// Any Ethernet: 1 452 bytes.
    #[default]
    Ethernet,
    /// Jumbo frames, a path of 9 000 bytes: 8 900 bytes.
    Jumbo,
    /// One machine only: 65 000 bytes.
    Loopback,
    /// Another size, for experiments.
    Bytes(u16),
}

impl MtuProfile {
    /// Bytes of a packet.
    #[must_use]
    pub fn bytes(self) -> u16 {
        match self {
            Self::Ethernet => 1_452,
            Self::Jumbo => 8_900,
            Self::Loopback => 65_000,
            Self::Bytes(bytes) => bytes.clamp(MTU_MIN, 65_000),
        }
    }

    /// As configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "ethernet",
            Self::Jumbo => "jumbo",
            Self::Loopback => "loopback",
            Self::Bytes(_) => "bytes",
        }
    }
}

impl std::str::FromStr for MtuProfile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ethernet" => Ok(Self::Ethernet),
            "jumbo" => Ok(Self::Jumbo),
            "loopback" => Ok(Self::Loopback),
            _ => Err(format!(
                "MTU profile {name:?} is none of ethernet, jumbo, loopback"
            )),
        }
    }
}

/// What of an endpoint may differ between uses and tests. The rest is decided.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TransportSettings {
    /// How large packets are.
    pub mtu: MtuProfile,
    /// After how long without a packet a connection is given up.
    pub idle: Duration,
    /// How often an idle connection is kept alive.
    pub keep_alive: Duration,
    /// What is asked for as socket buffers.
    pub socket_buffer_bytes: usize,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            mtu: MtuProfile::default(),
            idle: Duration::from_secs(1),
            keep_alive: Duration::from_millis(200),
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
        }
    }
}

/// How much a sender keeps of a connection until it is acknowledged.
pub(crate) const SEND_WINDOW_BYTES: u32 = 2 << 20;

/// The windows of one kind of connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// How much one stream may have on its way: what decides latency beside it.
    pub(crate) stream: u32,
    /// How much all streams of a connection may: more than those that can stall.
    pub(crate) connection: u32,
    /// How much the sender keeps until it is acknowledged.
    pub(crate) send: u32,
    /// How many unidirectional streams the other side may open.
    pub(crate) streams_uni: u32,
    /// How many bidirectional ones.
    pub(crate) streams_bidi: u32,
}

impl Windows {
    /// The windows for a connection that carries control beside up to `bulk_streams` streams which may stall
    /// all at once.
    pub(crate) fn with_bulk(mtu: MtuProfile, bulk_streams: u32) -> Self {
        let bulk_streams = bulk_streams.clamp(1, BULK_STREAMS_MAX);
        let wanted = match mtu.bytes() {
            // Small packets: more in flight does not raise throughput and does raise latency.
            0..=2_000 => 512 << 10,
            _ => 1 << 20,
        };
        let stream = wanted
            .min(BULK_WINDOW_BYTES / bulk_streams)
            .max(STREAM_WINDOW_MIN);
        let windows = Self {
            stream,
            connection: stream * bulk_streams + CONTROL_WINDOW_BYTES,
            send: SEND_WINDOW_BYTES,
            // Those that were reset and those that replace them, control, acks, and some to spare.
            streams_uni: 2 * bulk_streams + 16,
            streams_bidi: 0,
        };
        windows.check(mtu);
        windows
    }

    /// The windows for a connection that carries requests up and responses down one stream.
    pub(crate) fn for_clients(mtu: MtuProfile) -> Self {
        let windows = Self {
            streams_uni: 0,
            streams_bidi: 1,
            ..Self::with_bulk(mtu, 1)
        };
        windows.check(mtu);
        windows
    }

    /// The most bytes that QUIC keeps for a connection: sent and not acknowledged, come and not read.
    pub(crate) fn bytes_max(&self) -> usize {
        self.send as usize + self.connection as usize
    }

    pub(super) fn check(&self, mtu: MtuProfile) {
        // A stalled stream must leave room for control on its connection.
        assert!(self.stream < self.connection);
        // More spans than this in one stream, and quinn-proto closes the connection.
        assert!(u64::from(self.stream) <= 1024 * u64::from(mtu.bytes().max(MTU_MIN)));
        assert!(self.send > self.stream);
    }
}

/// The size to which packets fall when larger ones vanish.
pub(super) const MTU_MIN: u16 = 1_200;

/// The most bytes that bulk streams of one connection may have on their way to a reader that has stalled.
const BULK_WINDOW_BYTES: u32 = 8 << 20;

/// A bulk stream's window is not cut below this, however many there are.
const STREAM_WINDOW_MIN: u32 = 64 << 10;

/// The most bulk streams of one connection. Their smallest windows together stay below 4 GiB by far.
const BULK_STREAMS_MAX: u32 = 4_096;

/// What is left for control and acks when all bulk streams have stalled.
const CONTROL_WINDOW_BYTES: u32 = 1 << 20;

const _: () = {
    // Above 16 KiB quinn-proto panics on the first long packet; above the path, nothing arrives.
    assert!(MTU_MIN <= 1_452);
    assert!((BULK_STREAMS_MAX as u64) * (STREAM_WINDOW_MIN as u64) + (9 << 20) < u32::MAX as u64);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ConnectionConfig;

    #[test]
    fn windows_leave_room_for_control_however_many_groups_stall() {
        for mtu in [
            MtuProfile::Ethernet,
            MtuProfile::Jumbo,
            MtuProfile::Loopback,
        ] {
            for groups in [0, 1, 8, 64, 1024, 1 << 30] {
                let windows = Windows::with_bulk(mtu, groups);
                let groups = groups.min(BULK_STREAMS_MAX);
                assert!(windows.connection >= windows.stream * groups + CONTROL_WINDOW_BYTES);
                assert!(windows.streams_uni > groups);
                ConnectionConfig::new(
                    &TransportSettings {
                        mtu,
                        ..Default::default()
                    },
                    windows,
                );
            }
        }
    }

    #[test]
    fn a_profile_has_one_spelling() {
        for name in ["ethernet", "jumbo", "loopback"] {
            assert_eq!(name.parse::<MtuProfile>().unwrap().name(), name);
        }
        "Jumbo".parse::<MtuProfile>().unwrap_err();
        assert_eq!(MtuProfile::Bytes(3).bytes(), MTU_MIN);
    }
}
