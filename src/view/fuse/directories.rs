//! Open directories: each goes on listing what it began with.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::table::{Attributes, Id, Table};

/// The directories that processes have open, by handle.
#[derive(Debug)]
pub(super) struct Directories {
    open: HashMap<u64, OpenDirectory>,
    next: u64,
}

#[derive(Debug)]
struct OpenDirectory {
    number: u64,
    table: Arc<Table>,
    /// Whether the kernel was told names that it may not have taken in yet: it has when it asks again.
    is_told: bool,
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

    pub(super) fn add(&mut self, number: u64, table: Arc<Table>) -> u64 {
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(handle, OpenDirectory { number, table, is_told: false });
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
        let fresh = || OpenDirectory { number, table: Arc::clone(current), is_told: false };
        let open = self.open.entry(handle).or_insert_with(fresh);
        if restarts {
            open.table = Arc::clone(current);
        }
        open.is_told = false;
        Arc::clone(&open.table)
    }

    /// Notes that the kernel is about to be told names by way of a handle.
    pub(super) fn tells(&mut self, handle: u64) {
        if let Some(open) = self.open.get_mut(&handle) {
            open.is_told = true;
        }
    }

    /// The numbers of directories of which the kernel may still be taking in names.
    pub(super) fn told(&self) -> HashSet<u64> {
        self.open.values().filter(|open| open.is_told).map(|open| open.number).collect()
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
