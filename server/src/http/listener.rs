//! A listener that holds a bounded number of connections, each for a bounded time.
//!
//! Whoever can connect may otherwise hold as many as the process may have files.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Accepts while there is room.
#[derive(Debug)]
pub(super) struct Bounded {
    inner: TcpListener,
    room: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(inner: TcpListener) -> Self {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { inner, room }
    }
}

impl Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.expect("nobody closes the semaphore");
        // axum's own listener waits out a lack of files and skips connections that ended early.
        let (stream, address) = Listener::accept(&mut self.inner).await;
        let held = Held {
            stream,
            ends: Box::pin(sleep(CONNECTION_LIFE)),
            _room: room,
        };
        (held, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection and its place. After its time it reads as ended, so that its place becomes free.
#[derive(Debug)]
pub(super) struct Held {
    stream: TcpStream,
    ends: Pin<Box<Sleep>>,
    _room: OwnedSemaphorePermit,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ends.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.ends.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Far more than one scraper and one prober need.
const CONNECTIONS_MAX: usize = 64;

/// Longer than any answer takes. Who wants to stay connects again.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
