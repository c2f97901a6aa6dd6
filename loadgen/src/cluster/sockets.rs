//! The UDP sockets of a replica, bound to free ports once and held by whoever starts it.
//!
//! A replica that is killed comes back where it was, and nobody can have taken its port meanwhile: the socket
//! never closed. To a process of its own the sockets go over the Unix socket that is its standard input.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// The sockets of one replica.
#[derive(Debug)]
pub struct Sockets {
    /// For its peers.
    pub peer: UdpSocket,
    /// For clients, unless they come in by calls.
    pub client: Option<UdpSocket>,
}

impl Sockets {
    /// Takes free ports of this machine.
    pub fn bind(with_client: bool) -> io::Result<Self> {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        Ok(Self {
            peer: bind()?,
            client: with_client.then(bind).transpose()?,
        })
    }

    /// The same sockets once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            peer: self.peer.try_clone()?,
            client: self.client.as_ref().map(UdpSocket::try_clone).transpose()?,
        })
    }

    /// Throws away what has come for a replica that is gone: it is nothing to its successor.
    pub fn drain(&self) -> io::Result<()> {
        for socket in std::iter::once(&self.peer).chain(&self.client) {
            socket.set_nonblocking(true)?;
            let mut datagram = [0; 1];
            // Others may go on sending, so there is an end to it.
            for _ in 0..DATAGRAMS_MAX {
                // What does not fit is cut off on some systems and an error on others.
                match socket.recv(&mut datagram) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
mod passing {
    use std::io::{self, IoSlice, IoSliceMut};
    use std::mem::MaybeUninit;
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };

    use super::Sockets;

    impl Sockets {
        /// Sends clones of the sockets over a Unix socket.
        pub fn send(&self, to: impl AsFd) -> io::Result<()> {
            let fds: Vec<BorrowedFd<'_>> = std::iter::once(&self.peer)
                .chain(&self.client)
                .map(AsFd::as_fd)
                .collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut message = SendAncillaryBuffer::new(&mut space);
            if !message.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("two sockets do not fit into a message"));
            }
            // A message has to carry at least one byte beside them.
            sendmsg(to, &[IoSlice::new(b".")], &mut message, SendFlags::empty())?;
            Ok(())
        }

        /// Receives what [`Sockets::send`] sent.
        pub fn receive(from: impl AsFd) -> io::Result<Self> {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut message = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let bytes = &mut [IoSliceMut::new(&mut byte)];
            // Inherited by nobody: a replica starts no other program.
            let received = recvmsg(from, bytes, &mut message, RecvFlags::empty())?;
            // What did not fit is gone, or this process may hold no more: a replica would lack a socket.
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::other(
                    "not all sockets arrived: raise the limit of open files (ulimit -n)",
                ));
            }
            let mut received: Vec<OwnedFd> = Vec::new();
            for part in message.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = part {
                    received.extend(fds);
                }
            }
            let mut received = received.into_iter().map(UdpSocket::from);
            let peer = received.next();
            Ok(Self {
                peer: peer.ok_or_else(|| io::Error::other("no sockets came with it"))?,
                client: received.next(),
            })
        }
    }
}

/// More than the buffer of a socket holds.
const DATAGRAMS_MAX: usize = 100_000;

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_port_stays_taken_while_whoever_used_it_is_gone() {
        let held = Sockets::bind(true).unwrap();
        let address = held.peer.local_addr().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        held.send(&here).unwrap();
        let given = Sockets::receive(&there).unwrap();
        let client = |sockets: &Sockets| sockets.client.as_ref().unwrap().local_addr().unwrap();
        assert_eq!(given.peer.local_addr().unwrap(), address);
        assert_eq!(client(&given), client(&held));
        drop(given);
        UdpSocket::bind(address).unwrap_err();

        // What came for the one that is gone is nothing to the next.
        let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        stranger.send_to(b"old", address).unwrap();
        held.drain().unwrap();
        stranger.send_to(b"new", address).unwrap();
        held.send(&here).unwrap();
        let given = Sockets::receive(&there).unwrap();
        given.peer.set_nonblocking(false).unwrap();
        let mut datagram = [0; 8];
        let len = given.peer.recv(&mut datagram).unwrap();
        assert_eq!(&datagram[..len], b"new");
    }

    #[test]
    fn a_message_that_was_cut_off_is_an_error() {
        use std::io::IoSlice;
        use std::mem::MaybeUninit;
        use std::os::fd::AsFd as _;

        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

        let (here, there) = UnixStream::pair().unwrap();
        let fds = [here.as_fd(); 5];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        assert!(message.push(SendAncillaryMessage::ScmRights(&fds)));
        let byte = [IoSlice::new(b".")];
        sendmsg(&here, &byte, &mut message, SendFlags::empty()).unwrap();
        let error = Sockets::receive(&there).unwrap_err();
        assert!(
            error.to_string().contains("not all sockets arrived"),
            "{error}"
        );
    }

    #[test]
    fn a_message_without_sockets_is_an_error() {
        let (mut here, there) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut here, b"{").unwrap();
        Sockets::receive(&there).unwrap_err();
    }
}
