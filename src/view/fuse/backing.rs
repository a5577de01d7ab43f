//! Files that the kernel reads by itself, by the numbers under which it knows them.
//!
//! The library's own type closes a number when it is dropped and cannot be made from one that another
//! process got. So the numbers are ours: [`Backing`] owns one, and the library's type lives only for
//! as long as it takes to answer.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};
use parking_lot::Mutex;

use crate::mount::close_backing;

/// The backing files of one connection.
#[derive(Debug, Clone)]
pub(super) struct Backings(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: Arc<OwnedFd>,
    numbers: Mutex<Numbers>,
    /// Whether this process serves the connection: it closes nothing before.
    serves: AtomicBool,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Those that are not closed.
    pub(super) open: BTreeSet<u32>,
    /// The highest that was ever given out: the kernel counts up.
    pub(super) last: u32,
}

/// One file that is registered with the kernel, until this is dropped by a process that serves.
#[derive(Debug)]
pub(super) struct Backing {
    backings: Backings,
    number: u32,
}

impl Backings {
    /// Those of a connection that this process begins to serve, or, with the numbers of a former
    /// one, may begin to serve.
    pub(super) fn new(device: Arc<OwnedFd>, numbers: Numbers) -> Self {
        let (numbers, serves) = (Mutex::new(numbers), AtomicBool::new(false));
        Self(Arc::new(Shared { device, numbers, serves }))
    }

    /// From now on what is dropped is closed.
    pub(super) fn serve(&self) {
        self.0.serves.store(true, Ordering::SeqCst);
    }

    /// What another process would have to know.
    pub(super) fn numbers(&self) -> Numbers {
        self.0.numbers.lock().clone()
    }

    /// Registers a file. One call at a time: then a process that dies before it notes the number
    /// leaves at most one unknown, the next after the last.
    pub(super) fn register(&self, file: &File) -> io::Result<Backing> {
        let number = BackingId::create_raw(self.0.device.as_fd(), file)?;
        let mut numbers = self.0.numbers.lock();
        numbers.open.insert(number);
        numbers.last = numbers.last.max(number);
        drop(numbers);
        Ok(self.adopt(number))
    }

    /// Takes over a number that another process got.
    pub(super) fn adopt(&self, number: u32) -> Backing {
        Backing { backings: self.clone(), number }
    }

    /// Closes what a former process had and no open file needs, and what it may not have had the
    /// time to note.
    pub(super) fn close_unneeded(&self, needed: &BTreeSet<u32>) {
        let known = self.numbers();
        let unnoted = known.last.checked_add(1);
        for number in known.open.difference(needed).copied().chain(unnoted) {
            self.close(number);
        }
    }

    fn close(&self, number: u32) {
        if let Err(error) = close_backing(&self.0.device, number) {
            tracing::warn!(%error, number, "failed to give up a backing file");
        }
        self.0.numbers.lock().open.remove(&number);
    }
}

impl Backing {
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Answers an open with this file.
    pub(super) fn answer(&self, reply: ReplyOpen, handle: FileHandle, flags: FopenFlags) {
        // SAFETY: the number is open and of this connection, since `self` owns it, and stays open
        // while the wrapper lives, which gives it back below.
        let wrapper = unsafe { reply.wrap_backing(self.number) };
        reply.opened_passthrough(handle, flags, &wrapper);
        wrapper.into_raw();
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.backings.0.serves.load(Ordering::SeqCst) {
            self.backings.close(self.number);
        }
    }
}
