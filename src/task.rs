//! The only place that spawns tasks: every task has an owner.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::oneshot,
};
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

/// How many things are worked on in passing.
const FEW: usize = 1000;

/// Runs work whose time is in proportion to `count` (comparing, sorting): in passing for few, since
/// going to another thread takes longer, and on the threads for blocking work for many, so that
/// everybody else is answered meanwhile.
///
/// # Panics
/// Passes on a panic of `work`.
pub async fn for_count<T: Send + 'static>(
    count: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if count <= FEW { work() } else { blocking(work).await }
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

/// Runs short blocking work on this thread: other tasks move to another one meanwhile, as after
/// [`blocking`], but nobody waits for a thread to wake up, twice. What else the same task would poll
/// beside this waits.
///
/// # Cancellation
/// There is none: the work is done when this returns.
pub fn blocking_here<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // Nobody else could go on, whatever we do.
        _ => work(),
    }
}

/// How many threads a [`Queue`] works on: while one waits for the disk, another goes on.
const VISITS: usize = 2;

/// Much short blocking work, done on few threads: one visit to them does all that waits.
#[derive(Clone, Default)]
pub struct Queue(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    work: VecDeque<Box<dyn FnOnce() + Send>>,
    visits: usize,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.0.lock().work.len()).finish()
    }
}

impl Queue {
    /// As [`blocking`], behind what was asked for before.
    ///
    /// # Panics
    /// Passes on a panic of `work`.
    ///
    /// # Cancellation
    /// The work is done all the same, and its result is dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = oneshot::channel();
        self.put(Box::new(move || {
            // Nobody may be left to take the result.
            drop(answer.send(catch_unwind(AssertUnwindSafe(work))));
        }));
        let outcome = answered.await.expect("all work is done, or ends with the runtime");
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn put(&self, work: Box<dyn FnOnce() + Send>) {
        let mut waiting = self.0.lock();
        waiting.work.push_back(work);
        if waiting.visits < VISITS {
            waiting.visits += 1;
            let queue = self.clone();
            drop(tokio::task::spawn_blocking(move || queue.visit()));
        }
    }

    fn visit(&self) {
        while let Some(work) = self.next() {
            work();
        }
    }

    /// The next work; without any, the visit is over.
    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut waiting = self.0.lock();
        let next = waiting.work.pop_front();
        waiting.visits -= usize::from(next.is_none());
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn a_queue_answers_each_on_few_threads() {
        let queue = Queue::default();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = |number: usize| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            queue.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                number
            })
        };
        let answers = join_all((0..1000).map(work)).await;
        assert_eq!(answers, (0..1000).collect::<Vec<_>>());
        assert!((1..=VISITS).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn work_of_a_queue_is_done_after_a_panic_and_without_an_asker() {
        let queue = Queue::default();
        let panics = spawn_owned({
            let queue = queue.clone();
            async move { queue.run(|| assert_eq!(1, 2, "a defect")).await }
        });
        assert!(panics.await.unwrap_err().is_panic());
        let gate = Arc::new(Barrier::new(2));
        let work = Arc::clone(&gate);
        let mut asked = Box::pin(queue.run(move || work.wait()));
        assert!(futures::poll!(&mut asked).is_pending());
        drop(asked);
        gate.wait();
        assert_eq!(queue.run(|| 7).await, 7);
    }
}
