//! Open directories: each goes on listing what it began with.

use std::{collections::HashMap, sync::Arc};

use super::table::{Attributes, Id, Table};

/// The directories that processes have open, by handle.
#[derive(Debug)]
pub(super) struct Directories {
    open: HashMap<u64, OpenDirectory>,
    next: u64,
}

#[derive(Debug)]
struct OpenDirectory {
    table: Arc<Table>,
    taking: Taking,
}

/// What the kernel may still be doing with names that it was told: when it asks again, it has taken
/// them in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    Nothing,
    Names,
    /// There was a swap since.
    OldNames,
}

/// One line of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) name: &'a [u8],
    pub(super) attributes: Attributes,
    /// Where to go on after it.
    pub(super) next: u64,
}

/// `.` and `..` come before the children.
const DOTS: usize = 2;

impl Directories {
    pub(super) fn new() -> Self {
        Self { open: HashMap::new(), next: fastrand::u64(..) }
    }

    pub(super) fn add(&mut self, table: Arc<Table>) -> u64 {
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, OpenDirectory { table, taking: Taking::Nothing });
        handle
    }

    /// The table that a handle lists at a position: at the start it is the one that counts now, as
    /// `rewinddir(3)` asks for. A handle of a former process lists what counts now throughout.
    pub(super) fn table(
        &mut self,
        handle: u64,
        number: u64,
        offset: u64,
        current: &Arc<Table>,
    ) -> Arc<Table> {
        let restarts = offset == 0 && current.find(number).is_some();
        let fresh = || OpenDirectory { table: Arc::clone(current), taking: Taking::Nothing };
        let open = self.open.entry(handle).or_insert_with(fresh);
        if restarts {
            open.table = Arc::clone(current);
        }
        Arc::clone(&open.table)
    }

    /// Notes that the kernel is about to be told names by way of a handle.
    pub(super) fn tells(&mut self, handle: u64) {
        if let Some(open) = self.open.get_mut(&handle) {
            open.taking = Taking::Names;
        }
    }

    /// Notes that the kernel asks again by way of a handle. True if it has taken in names from before
    /// a swap meanwhile, and must be told to forget them.
    pub(super) fn asks(&mut self, handle: u64) -> bool {
        let taking = self.open.get_mut(&handle).map(|open| &mut open.taking);
        taking.is_some_and(|taking| std::mem::replace(taking, Taking::Nothing) == Taking::OldNames)
    }

    /// Notes that there was a swap. True if the kernel may still be taking in names from before.
    pub(super) fn swapped(&mut self) -> bool {
        let taking = self.open.values_mut().filter(|open| open.taking != Taking::Nothing);
        taking.map(|open| open.taking = Taking::OldNames).count() > 0
    }

    /// Whether the kernel may still be taking in names from before a swap.
    pub(super) fn is_behind(&self) -> bool {
        self.open.values().any(|open| open.taking == Taking::OldNames)
    }

    pub(super) fn remove(&mut self, handle: u64) -> Option<Arc<Table>> {
        self.open.remove(&handle).map(|open| open.table)
    }
}

impl Table {
    /// A directory from a position on. Positions are indices in the order of the listing, so they
    /// mean the same to every process that has the listing.
    pub(super) fn lines(&self, directory: Id, offset: u64) -> impl Iterator<Item = Line<'_>> {
        let children = self.children(directory);
        let count = children.len() + DOTS;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(count);
        (from..count).map(move |position| {
            let (name, id) = match position {
                0 => (&b"."[..], directory),
                1 => (&b".."[..], self.parent(directory)),
                _ => {
                    let id = Id::from_index(children.start + position - DOTS);
                    (self.name(id), id)
                }
            };
            Line { name, attributes: self.attributes(id), next: position as u64 + 1 }
        })
    }
}
