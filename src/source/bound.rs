//! A bound for the whole node, of which nobody takes all.
//!
//! Requests under way and bytes in flight are bounded for the node. With one queue for all, whoever
//! reads from a service that stalls would soon hold everything, and wait with everything else in
//! front of everybody. So each asker has a bound of its own below that of the node, and waits there:
//! three quarters, which cost a lone asker little and leave room for others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of units for the whole node.
#[derive(Debug, Clone)]
pub struct Bound {
    all: Arc<Semaphore>,
    units: usize,
}

/// One asker's part of a [`Bound`].
#[derive(Debug)]
pub struct Part {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// Units that are taken, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Bound {
    /// A bound of so many units; more than a semaphore can count are as many as it can.
    pub fn new(units: usize) -> Self {
        let units = units.min(Semaphore::MAX_PERMITS);
        Self { all: Arc::new(Semaphore::new(units)), units }
    }

    /// The part of one asker: three quarters, and at least as much as it takes at one time.
    pub fn part(&self, least: usize) -> Part {
        let own = (self.units - self.units / 4).max(least).min(self.units);
        Part { all: Arc::clone(&self.all), own: Arc::new(Semaphore::new(own)) }
    }
}

impl Part {
    /// Waits for so many units, first for the asker's own.
    ///
    /// # Panics
    /// Never: bounds are not closed.
    ///
    /// # Cancellation
    /// Safe; nothing is taken then.
    pub async fn take(&self, units: u32) -> Permit {
        let open = "bounds are never closed";
        let own = Arc::clone(&self.own).acquire_many_owned(units).await.expect(open);
        let all = Arc::clone(&self.all).acquire_many_owned(units).await.expect(open);
        Permit { _own: own, _all: all }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_asker_leaves_room_for_another() {
        let bound = Bound::new(8);
        let (greedy, other) = (bound.part(1), bound.part(1));
        let held: Vec<_> = std::iter::from_fn(|| greedy.take(1).now_or_never()).take(9).collect();
        assert_eq!(held.len(), 6);
        // However long the first one's queue is.
        let mut waiting = Box::pin(greedy.take(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        let (first, second) = (other.take(1).now_or_never(), other.take(1).now_or_never());
        assert!(first.is_some() && second.is_some() && other.take(1).now_or_never().is_none());
        drop(held);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn what_is_taken_at_one_time_always_fits() {
        let bound = Bound::new(8);
        assert!(bound.part(8).take(8).now_or_never().is_some());
        assert!(Bound::new(1).part(1).take(1).now_or_never().is_some());
    }
}
