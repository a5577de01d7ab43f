//! The only place that spawns tasks: every task has an owner.

use std::future::Future;

use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// The tasks of one owner, and how to end them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
}

impl Tasks {
    /// Starts a task that the owner waits for in [`Tasks::drain`]. It should watch [`Tasks::token`].
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(future);
    }

    /// Cancelled when the owner wants its tasks to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells all tasks to end and waits until they have.
    ///
    /// # Cancellation
    /// Dropped early, the tasks go on ending on their own.
    pub async fn drain(&self) {
        self.token.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Starts a task that is aborted when the handle is dropped: its owner is the holder.
#[expect(clippy::disallowed_methods, reason = "the handle owns the task")]
pub fn spawn_owned<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(future))
}

/// Runs blocking work (system calls, files) on the threads that are made for it.
///
/// # Panics
/// Passes on a panic of `work`.
///
/// # Cancellation
/// The work cannot be interrupted: dropped early, it runs to its end and its result is dropped.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
