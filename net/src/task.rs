//! Tasks that have an owner.

use tokio::task::JoinHandle;

/// A task that does not outlive its owner.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(tokio::task::spawn_local(future))
    }

    /// Ends it and waits until it has.
    pub(crate) async fn end(&mut self) {
        self.0.abort();
        // It was aborted, or had ended, or panicked: it is gone in each case.
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
