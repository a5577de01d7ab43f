//! Opening and closing files: what the kernel is told, noted for the process that comes next.
//!
//! The order is the rule: a backing file is registered, the open is noted, then it is answered; a
//! release is noted, then its backing file is given up. So whenever the process dies, what the kernel
//! has open is a part of what the journal says, and what it says too much is sent again.

use std::{collections::HashSet, fs::File, io, os::fd::OwnedFd, sync::Arc};

use super::{
    OpenFile,
    backing::{Backing, Backings, Numbers},
    journal::{Inode, Journal, Left, Noted},
    ledger::Ledger,
    opens::{Answer, Known, Open, Opens, Shown, Whole, answer},
    table::Attributes,
};
use crate::{object::Object, volume::Ownership};

/// The open files of one volume, and their journal.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) opens: Opens<Backing>,
    backings: Backings,
    journal: Journal,
    /// Whether the kernel takes backing files from us: known after the first refusal.
    takes_backing: bool,
}

/// How an open is answered.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) handle: u64,
    /// What the kernel reads from; without it, reads come here.
    pub(super) backing: Option<Arc<Backing>>,
}

/// One open.
#[derive(Debug)]
pub(super) struct Opening {
    /// The kernel's number of the request.
    pub(super) request: u64,
    pub(super) shown: Shown,
    pub(super) file: Arc<dyn OpenFile>,
}

impl Handles {
    /// Those of a new mount.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn create(ledger: &Ledger, device: Arc<OwnedFd>) -> io::Result<Self> {
        let numbers = Numbers::default();
        let journal = Journal::create(ledger, std::iter::empty(), &numbers)?;
        let backings = Backings::new(device, numbers);
        backings.serve();
        Ok(Self { opens: Opens::new(), backings, journal, takes_backing: false })
    }

    /// Those that a former process left open. Nothing of the mount changes before
    /// [`Handles::serve`], and dropping them changes nothing either.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn restore(
        ledger: &Ledger,
        left: Left,
        device: Arc<OwnedFd>,
        ownership: &Ownership,
    ) -> io::Result<Self> {
        let backings = Backings::new(device, left.numbers);
        let mut opens = Opens::new();
        for Inode { number, object, backing, handles } in left.inodes {
            let attributes = Attributes::of_file(number, &object, ownership);
            let shown = Shown { object: Arc::new(object), attributes };
            opens.restore(shown, backing.map(|it| Arc::new(backings.adopt(it))), handles);
        }
        let journal = Journal::create(ledger, noted(&opens), &backings.numbers())?;
        Ok(Self { opens, backings, journal, takes_backing: false })
    }

    /// From now on complete files may be given to the kernel.
    pub(super) fn offer_backing(&mut self) {
        self.takes_backing = true;
    }

    pub(super) fn takes_backing(&self) -> bool {
        self.takes_backing
    }

    /// The connection is served by this process from now on: closes the backing files that a former
    /// one had and nothing open needs, if there can be any.
    ///
    /// Before any request is answered, since what is opened then is needed, too.
    pub(super) fn serve(&self, passthrough: bool) {
        self.backings.serve();
        if !passthrough {
            return;
        }
        let needed = self.opens.all().filter_map(|known| Some(known.backing?.number())).collect();
        self.backings.close_unneeded(&needed);
    }

    /// Notes an open; `whole` is the file that the kernel could read by itself.
    ///
    /// # Errors
    /// What the file system of the journal answers; then the open must fail.
    pub(super) fn open(&mut self, open: Opening, whole: Option<&File>) -> io::Result<Opened> {
        let Opening { request, shown, file } = open;
        let number = shown.attributes.number;
        if let Some(handle) = self.opens.given(request) {
            self.opens.add(number, handle, Open { request, shown, file, backing: None });
            return Ok(Opened { handle, backing: self.opens.backing(number) });
        }
        self.shorten();
        let usable = whole.filter(|_| self.takes_backing);
        let standing = self.opens.standing(number);
        let is_first = self.opens.shown(number).is_none();
        let backing = match answer(standing, usable.map_or(Whole::No, |_| Whole::Usable)) {
            Answer::Cached => None,
            Answer::Register => usable.and_then(|file| self.register(file)),
            Answer::Same => self.opens.backing(number),
        };
        let handle = self.opens.unused();
        let noted = backing.as_ref().map(|backing| backing.number());
        let note = Noted { number, handle, request, backing: noted };
        #[cfg(test)]
        super::tests::dies_at("registered");
        self.journal.opened(note, is_first.then_some(&*shown.object))?;
        #[cfg(test)]
        super::tests::dies_at("opened");
        self.opens.add(number, handle, Open { request, shown, file, backing: backing.clone() });
        Ok(Opened { handle, backing })
    }

    /// Forgets a handle, or one that is not known. What is returned is to be dropped without holding
    /// a lock: it takes a system call, or more.
    pub(super) fn release(
        &mut self,
        handle: u64,
    ) -> (Option<Arc<dyn OpenFile>>, Option<Arc<Backing>>) {
        if self.opens.is_known(handle)
            && let Err(error) = self.journal.released(handle)
        {
            tracing::warn!(%error, "failed to note that a file is closed");
        }
        #[cfg(test)]
        super::tests::dies_at("released");
        self.opens.remove(handle)
    }

    /// Forgets what a former process noted about an open that fails now.
    pub(super) fn give_up(&mut self, request: u64) {
        if let Some(handle) = self.opens.given(request) {
            drop(self.release(handle));
        }
    }

    /// Without the privilege, or where the store lies on a file system that cannot be stacked upon,
    /// no other file need be tried.
    fn register(&mut self, file: &File) -> Option<Arc<Backing>> {
        match self.backings.register(file) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                self.takes_backing = false;
                tracing::info!(%error, "the kernel takes no backing files; all reads come here");
                None
            }
        }
    }

    fn shorten(&mut self) {
        if !self.journal.is_long(self.opens.len()) {
            return;
        }
        if let Err(error) = self.journal.renew(noted(&self.opens), &self.backings.numbers()) {
            tracing::warn!(%error, "failed to shorten the journal of open files");
        }
    }
}

/// What is open, each inode's object with its first handle.
fn noted(opens: &Opens<Backing>) -> impl Iterator<Item = (Noted, Option<&Object>)> {
    let mut seen = HashSet::new();
    opens.all().map(move |known| {
        let Known { number, handle, request, backing, object } = known;
        let backing = backing.map(|backing| backing.number());
        let first = seen.insert(number).then_some(object);
        (Noted { number, handle, request, backing }, first)
    })
}
