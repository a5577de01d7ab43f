//! What the keeper should hold, and what is left to do: plain data.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use super::{CustodianStatus, Link};
use crate::keeper::{EntryName, Kept, State};

#[derive(Debug)]
pub(super) struct Table {
    wanted: BTreeMap<EntryName, Wanted>,
    /// What a keeper may hold and should not.
    released: BTreeSet<EntryName>,
    found: Vec<Kept>,
    link: Link,
    has_answer: bool,
    /// No keeper listens, and so none holds anything.
    is_absent: bool,
    stops: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            wanted: BTreeMap::new(),
            released: BTreeSet::new(),
            found: Vec::new(),
            link: Link::Starting,
            has_answer: false,
            is_absent: false,
            stops: false,
        }
    }
}

#[derive(Debug)]
struct Wanted {
    kept: Kept,
    owed: Owed,
}

/// What the keeper still has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owed {
    Nothing,
    Put,
    Update,
    /// Nothing for now: it said no.
    Refused(String),
}

/// One request to the keeper.
#[derive(Debug, Clone)]
pub(super) enum Job {
    Put(Kept),
    Update(EntryName, Arc<State>),
    Release(EntryName),
}

impl Table {
    pub(super) fn put(&mut self, kept: Kept) {
        self.released.remove(&kept.name);
        self.wanted.insert(kept.name, Wanted { kept, owed: Owed::Put });
    }

    pub(super) fn update(&mut self, name: EntryName, state: Arc<State>) -> bool {
        let Some(wanted) = self.wanted.get_mut(&name) else { return false };
        wanted.kept.state = state;
        wanted.owed = match wanted.owed {
            Owed::Nothing | Owed::Update => Owed::Update,
            Owed::Put | Owed::Refused(_) => Owed::Put,
        };
        true
    }

    pub(super) fn release(&mut self, name: EntryName) {
        self.found.retain(|kept| kept.name != name);
        self.wanted.remove(&name);
        if !self.is_absent {
            self.released.insert(name);
        }
    }

    pub(super) const fn stop(&mut self) {
        self.stops = true;
    }

    pub(super) const fn stops(&self) -> bool {
        self.stops
    }

    pub(super) const fn has_answer(&self) -> bool {
        self.has_answer
    }

    pub(super) fn take_found(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.found)
    }

    /// A connection stands, and the keeper holds `listed`: all is owed anew, since the lease is a
    /// new one and the keeper may be. Returns what is to be taken.
    pub(super) fn connected(&mut self, listed: &BTreeSet<EntryName>) -> Vec<EntryName> {
        self.released.retain(|name| listed.contains(name));
        for wanted in self.wanted.values_mut() {
            wanted.owed = Owed::Put;
        }
        let ours =
            |name: &&EntryName| !self.wanted.contains_key(*name) && !self.released.contains(*name);
        listed.iter().filter(ours).copied().collect()
    }

    /// An entry of an earlier plugin was taken. One that was put meanwhile wins.
    pub(super) fn found(&mut self, kept: Kept) {
        if !self.wanted.contains_key(&kept.name) && !self.released.contains(&kept.name) {
            self.found.push(kept.clone());
            self.wanted.insert(kept.name, Wanted { kept, owed: Owed::Nothing });
        }
    }

    /// The keeper is there, and was asked for what it holds.
    pub(super) fn set_connected(&mut self, hold_for: Duration) {
        self.link = Link::Connected { hold_for };
        (self.has_answer, self.is_absent) = (true, false);
    }

    /// The keeper is not there; one that `is_absent` holds nothing.
    pub(super) fn set_away(&mut self, reason: String, is_absent: bool) {
        self.link = Link::Away(reason);
        self.has_answer |= is_absent;
        self.is_absent = is_absent;
        if is_absent {
            self.released.clear();
        }
    }

    /// What to do next.
    pub(super) fn next(&self) -> Option<Job> {
        // Releases first: they make room.
        if let Some(name) = self.released.first() {
            return Some(Job::Release(*name));
        }
        self.wanted.values().find_map(|wanted| match wanted.owed {
            Owed::Put => Some(Job::Put(wanted.kept.clone())),
            Owed::Update => Some(Job::Update(wanted.kept.name, Arc::clone(&wanted.kept.state))),
            Owed::Nothing | Owed::Refused(_) => None,
        })
    }

    /// The keeper did a job. What changed meanwhile is still owed.
    pub(super) fn done(&mut self, job: &Job) {
        match job {
            Job::Put(put) => self.settle(put.name, Some(&put.fd), &put.state),
            Job::Update(name, state) => self.settle(*name, None, state),
            Job::Release(name) => {
                self.released.remove(name);
                self.retry();
            }
        }
    }

    /// The keeper is there, and refused a job.
    pub(super) fn refused(&mut self, job: &Job, reason: String) {
        let name = match job {
            Job::Put(put) => put.name,
            Job::Update(name, _) => *name,
            // What it does not hold is released.
            Job::Release(_) => return self.done(job),
        };
        if let Some(wanted) = self.wanted.get_mut(&name) {
            // An update of what it does not know: it needs all of it.
            wanted.owed = match job {
                Job::Update(..) => Owed::Put,
                _ => Owed::Refused(reason),
            };
        }
    }

    /// Tries again what was refused.
    pub(super) fn retry(&mut self) {
        for wanted in self.wanted.values_mut() {
            if matches!(wanted.owed, Owed::Refused(_)) {
                wanted.owed = Owed::Put;
            }
        }
    }

    pub(super) fn has_refused(&self) -> bool {
        self.wanted.values().any(|wanted| matches!(wanted.owed, Owed::Refused(_)))
    }

    pub(super) fn holds(&self, name: EntryName) -> bool {
        let is_connected = matches!(self.link, Link::Connected { .. });
        is_connected && self.wanted.get(&name).is_some_and(|it| it.owed == Owed::Nothing)
    }

    pub(super) fn may_soon_hold(&self, name: EntryName) -> bool {
        let owed = self.wanted.get(&name).map(|wanted| &wanted.owed);
        !matches!(self.link, Link::Away(_)) && matches!(owed, Some(Owed::Put | Owed::Update))
    }

    pub(super) fn status(&self) -> CustodianStatus {
        let held = self.wanted.keys().filter(|name| self.holds(**name)).count();
        let refused = self.wanted.values().find_map(|wanted| match &wanted.owed {
            Owed::Refused(reason) => Some((wanted.kept.name, reason.clone())),
            _ => None,
        });
        let waiting = self.wanted.len() - held;
        CustodianStatus { link: self.link.clone(), held, waiting, refused }
    }

    fn settle(&mut self, name: EntryName, fd: Option<&Arc<OwnedFd>>, state: &Arc<State>) {
        let Some(wanted) = self.wanted.get_mut(&name) else { return };
        let kept = &wanted.kept;
        if fd.is_some_and(|fd| !Arc::ptr_eq(fd, &kept.fd)) {
            return;
        }
        let is_last = Arc::ptr_eq(state, &kept.state);
        match (&wanted.owed, is_last) {
            // Another descriptor was put while the keeper took a state for the one before.
            (Owed::Put, _) if fd.is_none() => {}
            (_, true) => wanted.owed = Owed::Nothing,
            (_, false) => wanted.owed = Owed::Update,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: u32, state: &[u8]) -> Kept {
        let name = format!("{number:032x}").parse().unwrap();
        let (_, fd) = std::io::pipe().unwrap();
        Kept { name, fd: Arc::new(fd.into()), state: Arc::new(State::new(state).unwrap()) }
    }

    fn connected() -> Table {
        let mut table = Table::default();
        table.connected(&BTreeSet::new());
        table.set_connected(Duration::ZERO);
        table
    }

    #[test]
    fn what_changes_under_way_is_still_owed() {
        let mut table = connected();
        let one = kept(1, b"first");
        table.put(one.clone());
        let job = table.next().unwrap();
        table.update(one.name, Arc::new(State::new(b"second").unwrap()));
        table.done(&job);
        assert!(!table.holds(one.name) && table.may_soon_hold(one.name));
        let job = table.next().unwrap();
        assert!(matches!(&job, Job::Update(_, state) if state.read().unwrap() == b"second"));
        // Another descriptor, while the state of the earlier one is under way.
        table.put(kept(1, b"third"));
        table.done(&job);
        assert!(matches!(table.next(), Some(Job::Put(_))));
        table.done(&table.next().unwrap());
        assert!(table.holds(one.name) && table.next().is_none());
    }

    #[test]
    fn a_new_keeper_gets_everything_again() {
        let mut table = connected();
        table.put(kept(1, b""));
        table.done(&table.next().unwrap());
        table.set_away("gone".into(), false);
        assert_eq!((table.status().held, table.status().waiting), (0, 1));
        table.release(kept(2, b"").name);
        assert!(table.connected(&BTreeSet::new()).is_empty());
        assert!(matches!(table.next(), Some(Job::Put(_))), "nothing is left to release");
    }

    #[test]
    fn what_is_released_without_a_keeper_is_not_remembered() {
        let mut table = connected();
        table.release(kept(1, b"").name);
        table.set_away("lost".into(), false);
        table.release(kept(2, b"").name);
        assert_eq!(table.released.len(), 2);
        table.set_away("nobody listens".into(), true);
        table.release(kept(3, b"").name);
        assert!(table.released.is_empty());
    }

    #[test]
    fn strangers_are_found_and_released_ones_are_not() {
        let mut table = connected();
        let [stranger, ours, gone] = [1, 2, 3].map(|number| kept(number, b""));
        table.put(ours.clone());
        table.release(gone.name);
        let listed = [stranger.name, ours.name, gone.name].into();
        assert_eq!(table.connected(&listed), [stranger.name]);
        table.found(stranger.clone());
        table.found(kept(2, b""));
        assert_eq!(table.take_found().len(), 1);
        assert!(table.take_found().is_empty(), "told once");
        assert!(matches!(table.next(), Some(Job::Release(name)) if name == gone.name));
        assert!(table.holds(stranger.name));
    }

    #[test]
    fn a_refused_entry_is_tried_again_when_there_is_room() {
        let mut table = connected();
        let [one, two] = [1, 2].map(|number| kept(number, b""));
        table.put(one.clone());
        table.done(&table.next().unwrap());
        table.put(two.clone());
        table.refused(&table.next().unwrap(), "full".into());
        assert!(table.next().is_none() && !table.may_soon_hold(two.name));
        assert_eq!(table.status().refused, Some((two.name, "full".into())));
        table.release(one.name);
        table.done(&table.next().unwrap());
        assert!(matches!(table.next(), Some(Job::Put(put)) if put.name == two.name));
    }

    #[test]
    fn an_update_of_what_the_keeper_lost_becomes_a_put() {
        let mut table = connected();
        let one = kept(1, b"");
        table.put(one.clone());
        table.done(&table.next().unwrap());
        assert!(table.update(one.name, Arc::new(State::new(b"x").unwrap())));
        table.refused(&table.next().unwrap(), "unknown".into());
        assert!(matches!(table.next(), Some(Job::Put(_))));
        assert!(!table.update(kept(9, b"").name, one.state));
    }
}
