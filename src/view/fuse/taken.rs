//! What was taken from the kernel and not yet answered, where the kernel cannot send it again.
//!
//! ```text
//! <ledger>/taken   a page: "s3vr" 1, 8 bytes that name the mount
//!                  the landing: what is read from the kernel is read into it
//!                  slots: a byte that is 1 if taken, 7 unused ones, then a request as the kernel wrote it
//! ```
//!
//! The file is mapped, so that what stands in memory stands in it however the process ends. A request
//! is read from the kernel into the landing, then copied into a slot, which is freed when the kernel
//! has the answer. So at no moment does a request stand nowhere: the kernel itself writes it into the
//! file. One that is in the landing and in no slot was taken last of all.
//!
//! A request that is longer than a slot stays in the landing, and nothing is taken until it is
//! answered. Those are of a kind that is answered at once: names that no file can have, and `ioctl(2)`.
//!
//! All blocks of the file are there from the beginning: a store that met a full disk would end the
//! process.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    sync::atomic::{AtomicU8, Ordering, compiler_fence},
};

use memmap2::MmapRaw;

use super::{
    ResumeError,
    ledger::{Ledger, check_header, damaged, missing},
    place::replace,
};

const MAGIC: &[u8] = b"s3vr";
const VERSION: u8 = 1;
const WHAT: &str = "the record of what a FUSE mount was asked";

const LANDING: usize = 4096;

/// The most that the kernel may want to write: `max_write` bytes, and what goes before them.
const LANDING_SIZE: usize = RELAYED as usize + 4096;

const SLOTS: usize = LANDING + LANDING_SIZE;
const SLOT: usize = 512;
const SLOT_HEAD: usize = 8;

/// More requests than these wait in the kernel.
const MOST: usize = 1024;

const SIZE: usize = SLOTS + MOST * SLOT;

/// `struct fuse_in_header`.
const IN_HEADER: usize = 40;

/// The most bytes that an answer carries, and that the kernel would write. A message of this size
/// never needs more than a few adjacent pages of the kernel's memory.
pub(super) const RELAYED: u32 = 64 << 10;

/// Nobody waits for an answer to these, and none is kept.
const FORGET: u32 = 2;
pub(super) const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// What a request begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    length: usize,
    pub(super) operation: u32,
    /// The kernel's number of it.
    pub(super) request: u64,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Slot(usize),
    Landing,
}

/// The file. One process has it at a time.
#[derive(Debug)]
pub(super) struct Taken {
    map: MmapRaw,
    free: Vec<usize>,
    /// By the kernel's number.
    places: HashMap<u64, Place>,
    /// Whether what is in the landing is in no slot.
    is_landing_kept: bool,
}

impl Asked {
    fn of(message: &[u8]) -> Option<Self> {
        let (length, rest) = message.split_first_chunk()?;
        let (operation, rest) = rest.split_first_chunk()?;
        let (request, _) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let operation = u32::from_ne_bytes(*operation);
        let request = u64::from_ne_bytes(*request);
        let is_one = (IN_HEADER..=message.len()).contains(&length) && request != 0;
        is_one.then_some(Self { length, operation, request })
    }

    /// Whether somebody waits for the answer.
    pub(super) fn is_awaited(self) -> bool {
        !matches!(self.operation, FORGET | INTERRUPT | BATCH_FORGET)
    }
}

impl Taken {
    /// The file of a new mount.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn create(ledger: &Ledger) -> io::Result<Self> {
        let map = replace(&ledger.taken(), |mut file| {
            let mut content = [MAGIC, &[VERSION], &ledger.mount().to_le_bytes()].concat();
            content.resize(SIZE, 0);
            file.write_all(&content)?;
            MmapRaw::map_raw(file)
        })?;
        Ok(Self { free: (0..MOST).rev().collect(), ..Self::of(map) })
    }

    fn of(map: MmapRaw) -> Self {
        Self { map, free: Vec::new(), places: HashMap::new(), is_landing_kept: false }
    }

    /// What a former process left, and what of it was not answered, in the order of the kernel.
    ///
    /// # Errors
    /// All but [`ResumeError::Ended`].
    pub(super) fn read(ledger: &Ledger) -> Result<(Self, Vec<Asked>), ResumeError> {
        let mut options = File::options();
        let file = options.read(true).write(true).open(ledger.taken()).map_err(missing(WHAT))?;
        check_header(&mut &file, MAGIC, VERSION, WHAT)?;
        if file.metadata().map_err(damaged(WHAT))?.len() != SIZE as u64 {
            return Err(ResumeError::Damaged { what: WHAT });
        }
        let map = MmapRaw::map_raw(&file).map_err(damaged(WHAT))?;
        let mut taken = Self::of(map);
        if taken.part(MAGIC.len() + 1, 8)[..] != ledger.mount().to_le_bytes() {
            return Err(ResumeError::Other { what: WHAT });
        }
        let asked = taken.find()?;
        Ok((taken, asked))
    }

    fn find(&mut self) -> Result<Vec<Asked>, ResumeError> {
        let mut found = Vec::new();
        for slot in (0..MOST).rev() {
            if !self.is_taken(slot) {
                self.free.push(slot);
                continue;
            }
            let message = self.part(SLOTS + slot * SLOT + SLOT_HEAD, SLOT - SLOT_HEAD);
            let asked = Asked::of(message).ok_or(ResumeError::Damaged { what: WHAT })?;
            self.places.insert(asked.request, Place::Slot(slot));
            found.push(asked);
        }
        if let Some(asked) = Asked::of(self.part(LANDING, LANDING_SIZE))
            && asked.is_awaited()
            && !self.places.contains_key(&asked.request)
        {
            self.keep(asked);
            found.push(asked);
        }
        found.sort_by_key(|asked| asked.request);
        Ok(found)
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && !self.is_landing_kept
    }

    /// Where the next request is to be read into. What has landed there before is forgotten.
    pub(super) fn landing(&mut self) -> &mut [u8] {
        // Also makes the page one that the kernel can write to at once.
        self.part(LANDING, IN_HEADER).fill(0);
        compiler_fence(Ordering::SeqCst);
        self.part(LANDING, LANDING_SIZE)
    }

    /// What has landed; `None` if that is no request.
    pub(super) fn landed(&mut self) -> Option<Asked> {
        compiler_fence(Ordering::SeqCst);
        Asked::of(self.part(LANDING, LANDING_SIZE))
    }

    /// Keeps what has landed until it is answered.
    pub(super) fn keep(&mut self, asked: Asked) {
        let slot = self.free.pop_if(|_| asked.length <= SLOT - SLOT_HEAD);
        let place = if let Some(slot) = slot {
            let (before, slots) = self.part(0, SIZE).split_at_mut(SLOTS);
            let start = slot * SLOT + SLOT_HEAD;
            slots[start..start + asked.length]
                .copy_from_slice(&before[LANDING..LANDING + asked.length]);
            self.set_taken(slot, true);
            // Else it would still be found when it is answered.
            self.part(LANDING, IN_HEADER).fill(0);
            Place::Slot(slot)
        } else {
            self.is_landing_kept = true;
            Place::Landing
        };
        self.places.insert(asked.request, place);
    }

    /// A request that is kept, as the kernel wrote it.
    pub(super) fn message(&mut self, asked: Asked) -> &[u8] {
        match self.places.get(&asked.request) {
            Some(Place::Slot(slot)) => self.part(SLOTS + slot * SLOT + SLOT_HEAD, asked.length),
            Some(Place::Landing) => self.part(LANDING, asked.length),
            None => &[],
        }
    }

    /// Forgets a request that the kernel has the answer of, or one that is not known.
    pub(super) fn answered(&mut self, request: u64) {
        match self.places.remove(&request) {
            Some(Place::Slot(slot)) => {
                self.set_taken(slot, false);
                self.free.push(slot);
            }
            Some(Place::Landing) => {
                self.part(LANDING, IN_HEADER).fill(0);
                self.is_landing_kept = false;
            }
            None => {}
        }
    }

    fn is_taken(&mut self, slot: usize) -> bool {
        self.mark(slot).load(Ordering::Acquire) == 1
    }

    /// All that was stored before stands in the file before this does, and all after it after.
    fn set_taken(&mut self, slot: usize, is_taken: bool) {
        compiler_fence(Ordering::SeqCst);
        self.mark(slot).store(is_taken.into(), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    fn mark(&mut self, slot: usize) -> &AtomicU8 {
        let byte = &raw mut self.part(SLOTS + slot * SLOT, 1)[0];
        // SAFETY: the byte is of the mapping, which outlives the answer, and nothing else refers to
        // it meanwhile, since `self` is borrowed.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    fn part(&mut self, start: usize, length: usize) -> &mut [u8] {
        assert!(start + length <= SIZE, "a part of the file");
        // SAFETY: the mapping is `SIZE` bytes long, and lives as long as `self`, which is borrowed for
        // as long as the part is used. Nobody else has the file: it is one mount's, which one process
        // serves at a time, in one thread.
        let first = unsafe { self.map.as_mut_ptr().add(start) };
        // SAFETY: as above; and its bytes are plain, and were all made with the file.
        unsafe { std::slice::from_raw_parts_mut(first, length) }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use test_case::test_case;

    use super::*;
    use crate::view::fuse::LedgerPlace;

    fn message(operation: u32, request: u64, length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        message.extend(operation.to_ne_bytes());
        message.extend(request.to_ne_bytes());
        message.resize(length, u8::try_from(request % 251).unwrap());
        message
    }

    fn create(directory: &Path) -> (Ledger, Taken) {
        let ledger = Ledger::create(&LedgerPlace::within(directory)).unwrap();
        let taken = Taken::create(&ledger).unwrap();
        (ledger, taken)
    }

    /// As the kernel does.
    fn land(taken: &mut Taken, message: &[u8]) -> Asked {
        taken.landing()[..message.len()].copy_from_slice(message);
        taken.landed().unwrap()
    }

    fn take(taken: &mut Taken, request: u64, length: usize) {
        let asked = land(taken, &message(15, request, length));
        taken.keep(asked);
    }

    /// The requests that another process would find now, each with the length of its message.
    fn left(ledger: &Ledger) -> Vec<(u64, usize)> {
        let (mut taken, asked) = died(ledger);
        let each = asked.into_iter().map(|asked| {
            let found = taken.message(asked).to_vec();
            assert_eq!(found, message(asked.operation, asked.request, asked.length));
            (asked.request, found.len())
        });
        each.collect()
    }

    /// What another process would have now. The file is one process's at a time.
    fn died(ledger: &Ledger) -> (Taken, Vec<Asked>) {
        let directory = tempfile::tempdir().unwrap();
        let copy = Ledger::of(&LedgerPlace::within(directory.path()), ledger.mount());
        fs::create_dir_all(copy.taken().parent().unwrap()).unwrap();
        fs::copy(ledger.taken(), copy.taken()).unwrap();
        Taken::read(&copy).unwrap()
    }

    #[test]
    fn what_was_not_answered_is_found_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        assert_eq!(left(&ledger), []);
        for request in [10, 4, 6, 8, 2] {
            take(&mut taken, request, 80);
        }
        taken.answered(6);
        taken.answered(6);
        taken.answered(77);
        take(&mut taken, 12, SLOT - SLOT_HEAD);
        assert_eq!(left(&ledger), [(2, 80), (4, 80), (8, 80), (10, 80), (12, SLOT - SLOT_HEAD)]);
    }

    #[test]
    fn what_only_landed_is_found_and_found_once() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        let asked = land(&mut taken, &message(1, 2, 60));
        assert_eq!(left(&ledger), [(2, 60)]);
        taken.keep(asked);
        assert_eq!(left(&ledger), [(2, 60)]);
        let copied = message(1, 2, 60);
        taken.landing()[..copied.len()].copy_from_slice(&copied);
        assert_eq!(left(&ledger), [(2, 60)], "it died before it emptied the landing");
        taken.landing();
        taken.answered(2);
        assert_eq!(left(&ledger), []);
    }

    #[test]
    fn a_long_request_stays_where_it_landed_and_is_the_last_until_it_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        take(&mut taken, 2, 80);
        take(&mut taken, 4, 4000);
        assert!(!taken.has_room());
        assert_eq!(left(&ledger), [(2, 80), (4, 4000)]);
        let (taken_over, _) = died(&ledger);
        assert!(!taken_over.has_room());
        taken.answered(4);
        assert!(taken.has_room());
        assert_eq!(left(&ledger), [(2, 80)]);
    }

    #[test_case(FORGET)]
    #[test_case(INTERRUPT)]
    #[test_case(BATCH_FORGET)]
    fn what_nobody_waits_for_is_not_left(operation: u32) {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        take(&mut taken, 2, 80);
        for length in [56, 4000] {
            assert!(!land(&mut taken, &message(operation, 4, length)).is_awaited());
            assert_eq!(left(&ledger), [(2, 80)]);
            assert!(died(&ledger).0.has_room());
        }
    }

    #[test]
    fn slots_are_used_again_and_the_file_does_not_grow() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        for request in 1..=MOST as u64 {
            assert!(taken.has_room());
            take(&mut taken, request, 80);
        }
        assert!(!taken.has_room());
        for request in 1..10 * MOST as u64 {
            taken.answered(request);
            assert!(taken.has_room());
            take(&mut taken, request + MOST as u64, 80);
        }
        assert_eq!(left(&ledger).len(), MOST);
        assert_eq!(fs::metadata(ledger.taken()).unwrap().len(), SIZE as u64);
    }

    #[test]
    fn a_process_that_dies_in_the_middle_of_a_copy_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        let whole = message(1, 2, 60);
        land(&mut taken, &whole);
        for copied in 0..=whole.len() {
            let start = SLOTS + SLOT_HEAD;
            taken.part(start, copied).copy_from_slice(&whole[..copied]);
            assert_eq!(left(&ledger), [(2, 60)], "{copied}");
        }
    }

    #[test]
    fn another_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut taken) = create(directory.path());
        take(&mut taken, 2, 80);
        let good = fs::read(ledger.taken()).unwrap();
        let refused = |at: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad.splice(at..at + bytes.len(), bytes.iter().copied());
            fs::write(ledger.taken(), bad).unwrap();
            Taken::read(&ledger).unwrap_err()
        };
        assert!(matches!(refused(0, b"t"), ResumeError::Damaged { .. }));
        assert!(matches!(refused(4, &[2]), ResumeError::Unknown { .. }));
        assert!(matches!(
            refused(5, &ledger.mount().wrapping_add(1).to_le_bytes()),
            ResumeError::Other { .. }
        ));
        assert!(matches!(refused(SLOTS + SLOT_HEAD, &[1, 0, 0, 0]), ResumeError::Damaged { .. }));
        fs::write(ledger.taken(), &good[..good.len() - 1]).unwrap();
        assert!(matches!(Taken::read(&ledger).unwrap_err(), ResumeError::Damaged { .. }));
        fs::remove_file(ledger.taken()).unwrap();
        assert!(matches!(Taken::read(&ledger).unwrap_err(), ResumeError::Damaged { .. }));
    }
}
