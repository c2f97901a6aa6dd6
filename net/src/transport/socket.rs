//! The UDP socket under an endpoint: large buffers, and batches that the kernel can send.
//!
//! quinn asks for batches of up to ten datagrams. Above 6 550 bytes a datagram such a batch is more than
//! the 64 KiB that one send may carry: the kernel refuses it, quinn takes the refusal for a probe that was
//! too large, every full batch is lost without a word, and the MTU falls to its floor. So the batch is
//! capped here.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

/// The most bytes of payload one UDP send carries, whether of one datagram or of a batch.
const SEND_BYTES_MAX: usize = 65_507;

/// What is asked for as the receive and send buffer of a socket.
pub const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Below this a burst of several peers may not fit, and packets are lost.
pub const SOCKET_BUFFER_BYTES_MIN: usize = 4 << 20;

/// What the system gave when asked for socket buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// Bytes of the receive buffer.
    pub receive_bytes: usize,
    /// Bytes of the send buffer.
    pub send_bytes: usize,
}

impl SocketBuffers {
    /// What a status line says if the system gave too little.
    #[must_use]
    pub fn fallback(&self) -> Option<String> {
        let Self {
            receive_bytes,
            send_bytes,
        } = self;
        (*receive_bytes.min(send_bytes) < SOCKET_BUFFER_BYTES_MIN).then(|| {
            format!(
                "UDP socket buffers of {receive_bytes} and {send_bytes} bytes instead of \
                 {SOCKET_BUFFER_BYTES}: raise net.core.rmem_max and net.core.wmem_max, or packets may be \
                 lost under load"
            )
        })
    }
}

/// Where an endpoint listens.
#[derive(Clone, Debug)]
pub enum Listen {
    /// On an address that is bound now. Port 0 lets the system choose.
    Address(SocketAddr),
    /// On a socket that was bound before. Its port stays taken for as long as somebody holds it.
    Socket(Arc<UdpSocket>),
}

impl Listen {
    /// The address; of a socket that does not tell, the unspecified one.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Address(address) => *address,
            Self::Socket(socket) => {
                let unspecified = (Ipv4Addr::UNSPECIFIED, 0).into();
                socket.local_addr().unwrap_or(unspecified)
            }
        }
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// A UDP socket with buffers as large as the system allows, up to `buffer_bytes`.
pub(crate) fn bind(listen: &Listen, buffer_bytes: usize) -> io::Result<(UdpSocket, SocketBuffers)> {
    let (socket, address) = match listen {
        Listen::Address(address) => {
            let domain = Domain::for_address(*address);
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                // Where the system refuses, the socket speaks IPv6 alone, which is what it was asked for.
                let _ = socket.set_only_v6(false);
            }
            (socket, Some(*address))
        }
        Listen::Socket(socket) => (Socket::from(socket.try_clone()?), None),
    };
    // What is above the system's limit is cut to it, or refused; the read back tells.
    let _ = socket.set_recv_buffer_size(buffer_bytes);
    let _ = socket.set_send_buffer_size(buffer_bytes);
    if let Some(address) = address {
        socket.bind(&address.into())?;
    }
    // Linux keeps as much again for its own use and reports the sum.
    let share = if cfg!(target_os = "linux") { 2 } else { 1 };
    let buffers = SocketBuffers {
        receive_bytes: socket.recv_buffer_size()? / share,
        send_bytes: socket.send_buffer_size()? / share,
    };
    Ok((socket.into(), buffers))
}

/// A socket that sends at most as many datagrams at once as fit into one send.
#[derive(Debug)]
pub(crate) struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    segments_max: usize,
    /// Dropped with the socket, which its receiver sees.
    _open: oneshot::Sender<()>,
}

impl CappedSocket {
    /// Wraps `socket` for datagrams of up to `mtu` bytes. What comes with it resolves once it is closed and
    /// its port is free.
    pub(crate) fn wrap(
        socket: UdpSocket,
        mtu: u16,
    ) -> io::Result<(Arc<Self>, oneshot::Receiver<()>)> {
        let (open, closed) = oneshot::channel();
        let socket = Self {
            inner: TokioRuntime.wrap_udp_socket(socket)?,
            segments_max: segments_max(mtu),
            _open: open,
        };
        Ok((Arc::new(socket), closed))
    }
}

/// How many datagrams of `mtu` bytes one send carries.
fn segments_max(mtu: u16) -> usize {
    let segments = (SEND_BYTES_MAX / usize::from(mtu)).max(1);
    assert!(segments == 1 || segments * usize::from(mtu) <= SEND_BYTES_MAX);
    segments
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        assert!(transmit.contents.len() <= SEND_BYTES_MAX);
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments_max)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_fits_into_one_send() {
        let profiles = [
            (1200, 54),
            (1452, 45),
            (6500, 10),
            (8900, 7),
            (65_000, 1),
            (65_535, 1),
        ];
        for (mtu, segments) in profiles {
            assert_eq!(segments_max(mtu), segments);
        }
    }

    fn local() -> Listen {
        Listen::Address("127.0.0.1:0".parse().unwrap())
    }

    #[test]
    fn a_socket_that_is_bound_already_keeps_its_port() {
        let held = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let listen = Listen::Socket(Arc::clone(&held));
        for _ in 0..2 {
            // Bound again while it is held: an address alone would be in use.
            let (socket, buffers) = bind(&listen, 64 << 10).unwrap();
            assert_eq!(socket.local_addr().unwrap(), held.local_addr().unwrap());
            assert!(buffers.receive_bytes >= 64 << 10);
        }
        let address = Listen::Address(listen.address());
        assert_eq!(
            bind(&address, 64 << 10).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn small_buffers_are_told() {
        let (_socket, buffers) = bind(&local(), 64 << 10).unwrap();
        assert!(buffers.fallback().unwrap().contains("net.core.rmem_max"));
        let enough = SocketBuffers {
            receive_bytes: SOCKET_BUFFER_BYTES_MIN,
            send_bytes: SOCKET_BUFFER_BYTES,
        };
        assert_eq!(enough.fallback(), None);
    }
}
