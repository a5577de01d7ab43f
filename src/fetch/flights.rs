//! Doing a thing once for everybody who wants it.
//!
//! [`Flights`] joins whoever asks while the work is under way. [`Turns`] joins only whoever asks
//! before the work has begun, because a listing that began before a call may miss what was written
//! before the call; so at most one listing of a kind runs and one waits.
//!
//! The maps hold weak references: work is owned by those who wait, and nothing is left when they go.

use std::{collections::HashMap, fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use parking_lot::Mutex;
use tokio::{
    sync::MutexGuard,
    time::{Instant, sleep_until},
};

type Work<T> = BoxFuture<'static, T>;

/// Work under way, by key.
pub(super) struct Flights<K, T>(Mutex<HashMap<K, WeakShared<Work<T>>>>)
where
    T: Clone;

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K, T: Clone> fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("len", &self.0.lock().len()).finish()
    }
}

impl<K: Eq + Hash + Clone, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Waits for the work of that key, beginning it if nobody has.
    pub(super) fn join<F>(&self, key: K, begin: impl FnOnce() -> F) -> impl Future<Output = T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade)
            && flight.peek().is_none()
        {
            return flight;
        }
        if flights.len() >= flights.capacity() {
            flights.retain(|_, flight| flight.upgrade().is_some());
        }
        let flight = begin().boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

/// Work that runs one at a time for each key.
pub(super) struct Turns<K, T: Clone>(Mutex<HashMap<K, Arc<Queue<T>>>>);

struct Queue<T: Clone> {
    /// Held while work runs.
    running: tokio::sync::Mutex<()>,
    /// The work that has not begun and may be joined.
    waiting: Mutex<Waiting<T>>,
}

struct Waiting<T: Clone> {
    work: Option<WeakShared<Work<T>>>,
    joined: u32,
    last_joined: Instant,
}

/// A burst (executors that start together) is over when nobody has joined for a while: this long,
/// and a quarter of a millisecond more for each who has joined, since the larger it is, the busier
/// the machine.
const QUIET: Duration = Duration::from_millis(5);
const QUIET_FOR_EACH: Duration = Duration::from_micros(250);

/// How long a burst may go on before its work begins all the same.
const BURST: Duration = Duration::from_millis(200);

impl<K, T: Clone> Default for Turns<K, T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K, T: Clone> fmt::Debug for Turns<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("len", &self.0.lock().len()).finish()
    }
}

impl<T: Clone> Queue<T> {
    fn new() -> Self {
        let waiting = Mutex::new(Waiting { work: None, joined: 0, last_joined: Instant::now() });
        Self { running: tokio::sync::Mutex::default(), waiting }
    }

    /// Waits until no other work runs, and lets a burst gather behind this one. Whoever is alone
    /// does not wait. Work that runs already is a sign of a burst, as is a second who asks.
    async fn turn(&self) -> MutexGuard<'_, ()> {
        if let Ok(running) = self.running.try_lock() {
            self.gather(2).await;
            return running;
        }
        let running = self.running.lock().await;
        self.gather(1).await;
        running
    }

    /// Waits while others join, if so many have asked.
    async fn gather(&self, burst: u32) {
        let end = Instant::now() + BURST;
        loop {
            let quiet = {
                let waiting = self.waiting.lock();
                if waiting.joined < burst {
                    return;
                }
                waiting.last_joined + QUIET + QUIET_FOR_EACH * waiting.joined
            };
            let now = Instant::now();
            if now >= quiet.min(end) {
                return;
            }
            sleep_until(quiet.min(end)).await;
        }
    }
}

impl<K: Eq + Hash, T: Clone + Send + Sync + 'static> Turns<K, T> {
    /// Waits for work of that key that begins after this call.
    pub(super) fn join<F>(
        &self,
        key: K,
        begin: impl FnOnce() -> F + Send + 'static,
    ) -> Shared<Work<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut queues = self.0.lock();
        queues.retain(|_, queue| Arc::strong_count(queue) > 1);
        let queue = Arc::clone(queues.entry(key).or_insert_with(|| Arc::new(Queue::new())));
        drop(queues);
        let mut waiting = queue.waiting.lock();
        if let Some(work) = waiting.work.as_ref().and_then(WeakShared::upgrade) {
            waiting.joined += 1;
            waiting.last_joined = Instant::now();
            return work;
        }
        let turn = Arc::clone(&queue);
        let work = async move {
            let _running = turn.turn().await;
            turn.waiting.lock().work = None;
            begin().await
        };
        let work = work.boxed().shared();
        *waiting = Waiting { work: work.downgrade(), joined: 1, last_joined: Instant::now() };
        work
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_meanwhile_share_one_flight() {
        let (flights, count) = (Flights::default(), Arc::new(AtomicU32::new(0)));
        let begin = || {
            let count = Arc::clone(&count);
            async move {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::SeqCst)
            }
        };
        let (a, b) = (flights.join("k", begin), flights.join("k", begin));
        assert_eq!(futures::join!(a, b), (0, 0));
        assert_eq!(flights.join("k", begin).await, 1, "a finished flight is not joined");
    }

    #[tokio::test]
    async fn a_flight_survives_the_one_who_began_it() {
        let flights = Flights::default();
        let gate = Arc::new(Notify::new());
        let begin = || {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                7
            }
        };
        let mut first = Box::pin(flights.join("k", begin));
        assert!(futures::poll!(&mut first).is_pending());
        let second = flights.join("k", begin);
        drop(first);
        gate.notify_one();
        assert_eq!(second.await, 7);
    }

    #[tokio::test]
    async fn work_that_has_begun_is_not_joined() {
        let (turns, count) = (Turns::default(), Arc::new(AtomicU32::new(0)));
        let gate = Arc::new(Notify::new());
        let begin = || {
            let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
            move || async move {
                let turn = count.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                turn
            }
        };
        let mut first = turns.join("k", begin());
        assert!(futures::poll!(&mut first).is_pending());
        let (second, third) = (turns.join("k", begin()), turns.join("k", begin()));
        gate.notify_one();
        assert_eq!(first.await, 0);
        gate.notify_one();
        assert_eq!(futures::join!(second, third), (1, 1));
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn work_that_waited_for_other_work_gathers_a_burst() {
        let (turns, count) = (Turns::default(), Arc::new(AtomicU32::new(0)));
        let gate = Arc::new(Notify::new());
        let begin = || {
            let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
            move || async move {
                let turn = count.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                turn
            }
        };
        let mut first = turns.join("k", begin());
        assert!(futures::poll!(&mut first).is_pending());
        let mut second = turns.join("k", begin());
        assert!(futures::poll!(&mut second).is_pending());
        gate.notify_one();
        assert_eq!(first.await, 0);
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(count.load(Ordering::SeqCst), 1, "it waits for others");
        let third = turns.join("k", begin());
        gate.notify_one();
        assert_eq!(futures::join!(second, third), (1, 1));
    }
}
