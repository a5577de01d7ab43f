//! What may be open where the kernel opens files by itself: it then tells of no open and no close.
//!
//! A file that was replaced goes on being what it was for as long as the kernel knows its inode, which
//! is while somebody has it open, at least. The kernel is asked for that some time after each swap,
//! when whoever looked a name up before it has taken the answer in. And what was read of a file stays
//! in the store until the kernel tells that it forgets the inode.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{OpenFile, opens::Shown};
use crate::object::Object;

/// Keeps content in the store while it is held.
pub type Hold = Arc<dyn Any + Send + Sync>;

/// The files of one volume that may be open.
#[derive(Debug, Default)]
pub(super) struct Unasked {
    /// Those that are listed no more, and since when.
    replaced: HashMap<u64, (Shown, Instant)>,
    /// Those that are being read.
    reading: HashMap<u64, Weak<dyn OpenFile>>,
    /// Those that were read.
    held: HashMap<u64, Hold>,
}

impl Unasked {
    /// These files are listed no more.
    pub(super) fn replaced(&mut self, files: impl IntoIterator<Item = (u64, Shown)>) {
        let now = Instant::now();
        self.replaced.extend(files.into_iter().map(|(number, shown)| (number, (shown, now))));
    }

    /// What a file shows that is listed no more.
    pub(super) fn shown(&self, number: u64) -> Option<&Shown> {
        self.replaced.get(&number).map(|(shown, _)| shown)
    }

    /// All files that are listed no more.
    pub(super) fn all_replaced(&self) -> impl Iterator<Item = (u64, &Object)> {
        self.replaced.iter().map(|(number, (shown, _))| (*number, &*shown.object))
    }

    /// The numbers of those that have not been listed for so long.
    pub(super) fn replaced_for(&self, time: Duration) -> Vec<u64> {
        let old = self.replaced.iter().filter(|(_, (_, since))| since.elapsed() >= time);
        old.map(|(number, _)| *number).collect()
    }

    /// The kernel does not know these any more.
    pub(super) fn forget_replaced(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.replaced.remove(number);
        }
    }

    /// The file that is being read: reads at one time share it.
    pub(super) fn file(&self, number: u64) -> Option<Arc<dyn OpenFile>> {
        self.reading.get(&number)?.upgrade()
    }

    /// A file was opened to be read: it, or the one that is being read by now.
    pub(super) fn share(&mut self, number: u64, file: Arc<dyn OpenFile>) -> Arc<dyn OpenFile> {
        if let Some(other) = self.file(number) {
            return other;
        }
        if self.reading.len() == self.reading.capacity() {
            self.reading.retain(|_, file| file.strong_count() > 0);
        }
        self.reading.insert(number, Arc::downgrade(&file));
        file
    }

    /// A file was read. What is returned is to be dropped without holding a lock.
    pub(super) fn hold(&mut self, number: u64, hold: Hold) -> Option<Hold> {
        self.held.insert(number, hold)
    }

    /// The kernel forgets an inode. What is returned is to be dropped without holding a lock.
    pub(super) fn let_go(&mut self, number: u64) -> Option<Hold> {
        self.held.remove(&number)
    }
}
