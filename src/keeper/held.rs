//! What is held, and since when nobody has it: plain data, with the time as an argument.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Bound,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use super::{EntryName, State, frame::PAGE};

/// The entries by name.
#[derive(Debug)]
pub(super) struct Held {
    entries: BTreeMap<EntryName, Entry>,
    capacity: usize,
    hold_for: Duration,
}

struct Entry {
    fd: OwnedFd,
    state: State,
    /// When the plugin went that had it; `None` while the one that is connected has it.
    since: Option<Instant>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("since", &self.since).finish_non_exhaustive()
    }
}

/// There is no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Held {
    pub(super) fn new(capacity: usize, hold_for: Duration) -> Self {
        Self { entries: BTreeMap::new(), capacity, hold_for }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) const fn hold_for(&self) -> Duration {
        self.hold_for
    }

    /// Holds `fd` for the plugin that is connected, in place of what has the name.
    ///
    /// # Errors
    /// The name is new, and there is no room.
    pub(super) fn put(&mut self, name: EntryName, fd: OwnedFd, state: State) -> Result<(), Full> {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&name) {
            return Err(Full);
        }
        self.entries.insert(name, Entry { fd, state, since: None });
        Ok(())
    }

    /// Replaces a state; `false` if there is no such entry.
    pub(super) fn update(&mut self, name: EntryName, state: State) -> bool {
        self.entries.get_mut(&name).map(|entry| entry.state = state).is_some()
    }

    /// Gives descriptor and state to the plugin that is connected, and goes on holding them.
    pub(super) fn take(&mut self, name: EntryName) -> Option<[BorrowedFd<'_>; 2]> {
        let entry = self.entries.get_mut(&name)?;
        entry.since = None;
        Some([entry.fd.as_fd(), entry.state.as_fd()])
    }

    /// Closes what has the name; `false` if nothing has.
    pub(super) fn release(&mut self, name: EntryName) -> bool {
        self.entries.remove(&name).is_some()
    }

    /// The first names after `after` with the sizes of their states, and whether there are more.
    pub(super) fn page(&self, after: Option<EntryName>) -> (Vec<(EntryName, u64)>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range((start, Bound::Unbounded));
        let page = rest.by_ref().take(PAGE).map(|(name, entry)| (*name, entry.state.length()));
        (page.collect(), rest.next().is_some())
    }

    /// The connected plugin went: what it had waits for another from now on.
    pub(super) fn abandon(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.since.get_or_insert(now);
        }
    }

    /// Closes what has waited for too long, and says what it was.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<EntryName> {
        let hold_for = self.hold_for;
        let late = |entry: &Entry| {
            entry.since.is_some_and(|since| now.saturating_duration_since(since) >= hold_for)
        };
        self.entries.extract_if(.., |_, entry| late(entry)).map(|(name, _)| name).collect()
    }

    /// When [`Held::give_up`] has something to do next. Never, if that is too far away to tell.
    pub(super) fn next_end(&self) -> Option<Instant> {
        let waiting = self.entries.values().filter_map(|entry| entry.since);
        waiting.min()?.checked_add(self.hold_for)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> EntryName {
        format!("{number:032x}").parse().unwrap()
    }

    fn put(held: &mut Held, number: usize) -> Result<(), Full> {
        let (_, fd) = std::io::pipe().unwrap();
        held.put(name(number), fd.into(), State::new(b"state").unwrap())
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn what_is_full_still_replaces() {
        let mut held = Held::new(2, MINUTE);
        assert_eq!([1, 2, 3].map(|number| put(&mut held, number)), [Ok(()), Ok(()), Err(Full)]);
        assert_eq!(put(&mut held, 2), Ok(()));
        assert!(held.release(name(1)) && !held.release(name(1)));
        assert_eq!(put(&mut held, 3), Ok(()));
        assert!(held.take(name(1)).is_none() && held.take(name(2)).is_some());
        assert!(!held.update(name(1), State::new(b"").unwrap()));
    }

    #[test]
    fn only_what_no_plugin_took_is_given_up() {
        let mut held = Held::new(10, MINUTE);
        let start = Instant::now();
        put(&mut held, 1).unwrap();
        assert_eq!(held.give_up(start + 10 * MINUTE), [], "its plugin is there");
        assert_eq!(held.next_end(), None);
        held.abandon(start);
        put(&mut held, 2).unwrap();
        assert_eq!(held.next_end(), Some(start + MINUTE));
        assert_eq!(held.give_up(start + MINUTE / 2), []);
        // A second plugin came, took nothing, and went: the first one's time still runs.
        held.abandon(start + MINUTE / 2);
        assert_eq!(held.give_up(start + MINUTE), [name(1)]);
        // The next one takes it just in time.
        assert!(held.take(name(2)).is_some());
        assert_eq!(held.give_up(start + 10 * MINUTE), []);
        held.abandon(start + 10 * MINUTE);
        assert_eq!(held.give_up(start + 11 * MINUTE), [name(2)]);
        assert_eq!(held.len(), 0);
    }

    #[test]
    fn pages_tell_of_every_entry_once() {
        let mut held = Held::new(1000, MINUTE);
        for number in 0..=PAGE {
            let (_, fd) = std::io::pipe().unwrap();
            let state = State::new(&vec![0; number]).unwrap();
            held.put(name(number), fd.into(), state).unwrap();
        }
        let (first, more) = held.page(None);
        assert!(more && first.len() == PAGE && first[3] == (name(3), 3));
        assert_eq!(held.page(Some(first[PAGE - 1].0)), (vec![(name(PAGE), PAGE as u64)], false));
        assert_eq!(held.page(Some(name(1000))), (vec![], false));
    }
}
