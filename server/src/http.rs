//! What other programs watch a node by: `/metrics`, `/livez`, `/readyz` over plain HTTP.
//!
//! On a thread of its own with a runtime of its own: a scrape takes copies and never makes the shard wait.

mod listener;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use logdrive::{MetricsSnapshot, Status};
use tokio::sync::oneshot;

use self::listener::Bounded;
use crate::health::{self, Health};
use crate::metrics;

/// What is watched.
pub trait Watched: Send + Sync + 'static {
    /// A copy of how it stands.
    fn status(&self) -> Status;
    /// A copy of what it has counted.
    fn metrics(&self) -> MetricsSnapshot;
    /// Whether it is on its way down.
    fn draining(&self) -> bool;
}

/// A running server of `/metrics`, `/livez` and `/readyz`.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Http {
    /// Listens, and serves from then on.
    pub fn start(address: SocketAddr, watched: Arc<dyn Watched>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            let listener = Bounded::new(tokio::net::TcpListener::from_std(listener)?);
            let stopped = async move {
                // An error says that the other end is gone, which means the same.
                let _ = stopped.await;
            };
            tokio::select! {
                ended = async { axum::serve(listener, router(watched)).await } => ended,
                () = stopped => Ok(()),
            }
        };
        let thread = std::thread::Builder::new().name("http".to_owned());
        let thread = thread.spawn(move || {
            if let Err(error) = runtime.block_on(serve) {
                tracing::error!(event = "http_ended", %error, "the HTTP port is closed: metrics and health are gone");
            }
        })?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(
                event = "http_panicked",
                "the thread of the HTTP port panicked"
            );
        }
    }
}

fn router(watched: Arc<dyn Watched>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(watched)
}

async fn metrics_page(State(watched): State<Arc<dyn Watched>>) -> Response {
    let page = metrics::page(&watched.status(), &watched.metrics());
    match page {
        Ok(page) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn livez(State(watched): State<Arc<dyn Watched>>) -> Response {
    let turns = turns(&*watched).await;
    answer(&health::live(&watched.status(), turns))
}

async fn readyz(State(watched): State<Arc<dyn Watched>>) -> Response {
    let turns = turns(&*watched).await;
    let (status, draining) = (watched.status(), watched.draining());
    answer(&health::ready(&status, turns, draining))
}

/// Whether the shard's loop turns: an idle one does at least ten times a second.
async fn turns(watched: &dyn Watched) -> bool {
    let before = watched.metrics().turns;
    for _ in 0..TURN_LOOKS {
        if watched.metrics().turns != before {
            return true;
        }
        tokio::time::sleep(TURN_LOOK_EVERY).await;
    }
    watched.metrics().turns != before
}

fn answer(health: &Health) -> Response {
    let code = if health.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, health.to_string()).into_response()
}

/// A loop that has not turned for a second is stuck.
const TURN_LOOKS: u32 = 50;
const TURN_LOOK_EVERY: Duration = Duration::from_millis(20);
