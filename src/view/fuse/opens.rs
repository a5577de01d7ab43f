//! Which inodes are open, in which mode, and how the next open of one may be answered.
//!
//! A kernel rule: an inode is open in one mode at a time. A cached open beside a passthrough one,
//! the reverse, or a second open with another backing id, is EIO for the process that opens. So the
//! first open of an inode decides for all, until its last handle is closed.
//!
//! A handle carries nothing: after a restart the kernel goes on with handles that this process never
//! gave out, and all that is needed to serve them follows from the inode. Handles are numbered from
//! a random start, so that those of another process are not taken for ours.

use std::{collections::HashMap, sync::Arc};

use super::{OpenFile, table::Attributes};
use crate::object::Object;

/// How an inode is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Closed,
    Cached,
    Passthrough,
}

/// Whether the next handle could be served by the kernel alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    /// The file is complete, and the kernel takes backing files from us.
    Usable,
    /// It is not, or the kernel does not.
    No,
}

/// How an open is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Through the page cache and this process.
    Cached,
    /// With a backing file that has to be registered first; [`Answer::Cached`] if that fails.
    Register,
    /// With the backing file of the handles that are open, whether or not there is another now.
    Same,
}

/// The kernel's rule.
pub(super) fn answer(standing: Standing, whole: Whole) -> Answer {
    match (standing, whole) {
        (Standing::Passthrough, _) => Answer::Same,
        (Standing::Closed, Whole::Usable) => Answer::Register,
        (Standing::Cached, _) | (Standing::Closed, Whole::No) => Answer::Cached,
    }
}

/// What an inode shows, for as long as it is open: it may have left the table meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) object: Arc<Object>,
    pub(super) attributes: Attributes,
}

/// One handle that is opened.
#[derive(Debug)]
pub(super) struct Open<B> {
    pub(super) shown: Shown,
    pub(super) file: Arc<dyn OpenFile>,
    /// What the kernel reads from; only that of an inode's first handle counts.
    pub(super) backing: Option<Arc<B>>,
}

#[derive(Debug)]
struct OpenInode<B> {
    shown: Shown,
    handles: usize,
    /// What the kernel reads from; `None` is cached.
    backing: Option<Arc<B>>,
}

/// The open files of one volume; `B` is a registered backing file.
#[derive(Debug)]
pub(super) struct Opens<B> {
    inodes: HashMap<u64, OpenInode<B>>,
    handles: HashMap<u64, Arc<dyn OpenFile>>,
    next: u64,
}

impl<B> Opens<B> {
    pub(super) fn new() -> Self {
        Self { inodes: HashMap::new(), handles: HashMap::new(), next: fastrand::u64(..) }
    }

    pub(super) fn standing(&self, number: u64) -> Standing {
        match self.inodes.get(&number) {
            None => Standing::Closed,
            Some(OpenInode { backing: None, .. }) => Standing::Cached,
            Some(OpenInode { backing: Some(_), .. }) => Standing::Passthrough,
        }
    }

    pub(super) fn backing(&self, number: u64) -> Option<Arc<B>> {
        self.inodes.get(&number)?.backing.clone()
    }

    /// What an open inode shows.
    pub(super) fn shown(&self, number: u64) -> Option<&Shown> {
        self.inodes.get(&number).map(|inode| &inode.shown)
    }

    /// Notes an open, before it is answered; returns its handle.
    pub(super) fn add(&mut self, number: u64, open: Open<B>) -> u64 {
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.adopt(number, handle, open);
        handle
    }

    /// As [`Opens::add`], for a handle that another process gave out.
    pub(super) fn adopt(&mut self, number: u64, handle: u64, open: Open<B>) {
        let Open { shown, file, backing } = open;
        // Two reads of one handle may both have opened it again: it counts once.
        if self.handles.insert(handle, file).is_some() {
            return;
        }
        let closed = OpenInode { shown, handles: 0, backing };
        self.inodes.entry(number).or_insert(closed).handles += 1;
    }

    pub(super) fn file(&self, handle: u64) -> Option<Arc<dyn OpenFile>> {
        self.handles.get(&handle).cloned()
    }

    /// Forgets a handle. What is returned is to be dropped without holding a lock.
    pub(super) fn remove(
        &mut self,
        number: u64,
        handle: u64,
    ) -> (Option<Arc<dyn OpenFile>>, Option<Arc<B>>) {
        let Some(file) = self.handles.remove(&handle) else { return (None, None) };
        let Some(inode) = self.inodes.get_mut(&number) else { return (Some(file), None) };
        inode.handles -= 1;
        let last = inode.handles == 0;
        let closed = last.then(|| self.inodes.remove(&number)).flatten();
        (Some(file), closed.and_then(|inode| inode.backing))
    }
}
