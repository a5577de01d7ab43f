//! Which inodes are open, in which mode, and how the next open of one may be answered.
//!
//! A kernel rule: an inode is open in one mode at a time. A cached open beside a passthrough one,
//! the reverse, or a second open with another backing id, is EIO for the process that opens. So the
//! first open of an inode decides for all, until its last handle is closed.
//!
//! After a restart the kernel goes on with handles that this process never gave out. The journal tells
//! what they are; their content is opened when it is read. Handles are numbered from a random start,
//! so that those of another process are not taken for ours; 0 is what the kernel opens by itself.
//!
//! An open that a process noted and did not answer is sent again by the kernel, and gets the handle
//! that was noted. (One whose process is killed between that and our reading is not: its handle stays
//! noted until the volume goes. No process can be killed while it waits for an answer, so this takes
//! a signal in the very moment of a take-over.)

use std::{collections::HashMap, sync::Arc};

use super::{OpenFile, table::Attributes};
use crate::object::Object;

/// `FUSE_UNIQUE_RESEND`: set in the number of a request that the kernel sends again.
pub(super) const RESENT: u64 = 1 << 63;

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
    /// The kernel's number of the request.
    pub(super) request: u64,
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

#[derive(Debug)]
struct OpenHandle {
    number: u64,
    request: u64,
    /// `None` until a handle of a former process is read.
    file: Option<Arc<dyn OpenFile>>,
}

/// What a handle is, for the journal.
#[derive(Debug)]
pub(super) struct Known<'a, B> {
    pub(super) number: u64,
    pub(super) handle: u64,
    pub(super) request: u64,
    pub(super) backing: Option<&'a Arc<B>>,
    pub(super) object: &'a Object,
}

/// The open files of one volume; `B` is a registered backing file.
#[derive(Debug)]
pub(super) struct Opens<B> {
    inodes: HashMap<u64, OpenInode<B>>,
    handles: HashMap<u64, OpenHandle>,
    /// The requests that a former process may not have answered, with the handles that it gave.
    former: HashMap<u64, u64>,
    next: u64,
}

impl<B> Opens<B> {
    pub(super) fn new() -> Self {
        let (inodes, handles, former) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { inodes, handles, former, next: fastrand::u64(1..1 << 63) }
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

    /// How many handles there are.
    pub(super) fn len(&self) -> usize {
        self.handles.len()
    }

    /// All handles, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = Known<'_, B>> {
        self.handles.iter().filter_map(|(handle, OpenHandle { number, request, .. })| {
            let OpenInode { shown, backing, .. } = self.inodes.get(number)?;
            let (number, handle, request) = (*number, *handle, *request);
            Some(Known {
                number,
                handle,
                request,
                backing: backing.as_ref(),
                object: &shown.object,
            })
        })
    }

    /// A number for the next handle.
    pub(super) fn unused(&mut self) -> u64 {
        loop {
            let handle = self.next;
            self.next = self.next.wrapping_add(1);
            if !self.handles.contains_key(&handle) {
                return handle;
            }
        }
    }

    /// Notes a handle, before its open is answered. One that is known already is a former process's,
    /// and has a file from now on.
    pub(super) fn add(&mut self, number: u64, handle: u64, open: Open<B>) {
        let Open { request, shown, file, backing } = open;
        // Two reads of one handle may both have opened it again: it counts once.
        if let Some(known) = self.handles.get_mut(&handle) {
            known.file = Some(file);
            return;
        }
        self.handles.insert(handle, OpenHandle { number, request, file: Some(file) });
        let closed = OpenInode { shown, handles: 0, backing };
        self.inodes.entry(number).or_insert(closed).handles += 1;
    }

    /// Notes an inode that a former process left open; each handle with the request that opened it.
    pub(super) fn restore(
        &mut self,
        shown: Shown,
        backing: Option<Arc<B>>,
        handles: impl IntoIterator<Item = (u64, u64)>,
    ) {
        let number = shown.attributes.number;
        let mut count = 0;
        for (handle, request) in handles {
            self.handles.insert(handle, OpenHandle { number, request, file: None });
            self.former.insert(request & !RESENT, handle);
            count += 1;
        }
        self.inodes.insert(number, OpenInode { shown, handles: count, backing });
    }

    /// The handle that a former process gave to a request which the kernel sends again: it died
    /// before it answered.
    pub(super) fn given(&self, request: u64) -> Option<u64> {
        let resent = (request & RESENT != 0).then_some(request & !RESENT)?;
        self.former.get(&resent).copied()
    }

    pub(super) fn file(&self, handle: u64) -> Option<Arc<dyn OpenFile>> {
        self.handles.get(&handle)?.file.clone()
    }

    pub(super) fn is_known(&self, handle: u64) -> bool {
        self.handles.contains_key(&handle)
    }

    /// Forgets a handle. What is returned is to be dropped without holding a lock.
    pub(super) fn remove(&mut self, handle: u64) -> (Option<Arc<dyn OpenFile>>, Option<Arc<B>>) {
        let Some(OpenHandle { number, request, file }) = self.handles.remove(&handle) else {
            return (None, None);
        };
        self.former.remove(&(request & !RESENT));
        let Some(inode) = self.inodes.get_mut(&number) else { return (file, None) };
        inode.handles -= 1;
        let last = inode.handles == 0;
        let closed = last.then(|| self.inodes.remove(&number)).flatten();
        (file, closed.and_then(|inode| inode.backing))
    }
}
