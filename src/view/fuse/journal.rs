//! Which files are open, for the process that comes next.
//!
//! Nothing else tells: the kernel goes on with the handles that it has, and wants an inode to be
//! opened as it is open already (opens.rs).
//!
//! ```text
//! "s3vo" 1, 8 bytes that name the mount, 4 bytes: the highest number of a backing file so far
//! records:  2 bytes length, 2 bytes its complement, 4 bytes CRC-32, then so many bytes:
//!   0  open      request, inode, handle, backing file or 0; what it shows, with an inode's first
//!   1  release   handle
//!   2  backing   the number of a backing file that is not closed
//! ```
//!
//! An open is noted before it is answered, with one `write(2)`; a release before its backing file is
//! given up. A process can die in the middle of a write: what is missing at the end was not answered.
//! An open also tells what it shows, so that it can be served whatever became of the listing.
//!
//! When most records are of files that were closed, the journal is written anew.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crc_fast::{CrcAlgorithm, checksum};

use super::{
    ResumeError,
    backing::Numbers,
    ledger::{Ledger, check_header, damaged, missing},
    place::replace,
};
use crate::{
    listing::{read_object, write_object},
    object::Object,
    packed::{invalid, put, take},
};

const MAGIC: &[u8] = b"s3vo";
const VERSION: u8 = 1;
const WHAT: &str = "the journal of open files of a FUSE mount";

/// Length, complement and CRC of a record.
const FRAME: usize = 8;

/// Below so many records a journal is never too long.
const FEW: usize = 1024;

/// One handle of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) number: u64,
    pub(super) handle: u64,
    /// The kernel's number of the request that opened it.
    pub(super) request: u64,
    /// The number of the file that the kernel reads from.
    pub(super) backing: Option<u32>,
}

/// What a former process left open.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) inodes: Vec<Inode>,
    pub(super) numbers: Numbers,
}

/// One inode that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) object: Object,
    pub(super) backing: Option<u32>,
    /// Handles, each with the request that opened it.
    pub(super) handles: HashMap<u64, u64>,
}

/// The file. Whoever changes what is open holds it, so that records stand in the order of events.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    mount: u64,
    file: File,
    length: u64,
    records: usize,
}

impl Journal {
    /// A journal of what is open now, in the place of any other.
    ///
    /// # Errors
    /// What the file system answers; the other one then stays.
    pub(super) fn create<'a>(
        ledger: &Ledger,
        open: impl Iterator<Item = (Noted, Option<&'a Object>)>,
        numbers: &Numbers,
    ) -> io::Result<Self> {
        let (path, mount) = (ledger.opens(), ledger.mount());
        let (file, length, records) = write_all(&path, mount, open, numbers)?;
        Ok(Self { path, mount, file, length, records })
    }

    /// Notes an open; with what it shows if its inode was not open.
    ///
    /// # Errors
    /// What the file system answers; nothing is noted then.
    pub(super) fn opened(&mut self, open: Noted, object: Option<&Object>) -> io::Result<()> {
        self.append(&open_record(open, object)?)
    }

    /// Notes that a handle is gone.
    ///
    /// # Errors
    /// As [`Journal::opened`].
    pub(super) fn released(&mut self, handle: u64) -> io::Result<()> {
        let mut body = vec![1];
        put(&mut body, handle)?;
        self.append(&framed(&body)?)
    }

    /// Whether most of it is about what is not open any more; `open` handles are.
    pub(super) fn is_long(&self, open: usize) -> bool {
        self.records > FEW.max(4 * open)
    }

    /// Writes the journal anew, with what is open now.
    ///
    /// # Errors
    /// What the file system answers; the journal stays as it was, and is not tried at once again.
    pub(super) fn renew<'a>(
        &mut self,
        open: impl Iterator<Item = (Noted, Option<&'a Object>)>,
        numbers: &Numbers,
    ) -> io::Result<()> {
        let written = write_all(&self.path, self.mount, open, numbers);
        self.records = 0;
        (self.file, self.length, self.records) = written?;
        Ok(())
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(record) {
            // Half a record would hide those after it.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += record.len() as u64;
        self.records += 1;
        Ok(())
    }
}

fn write_all<'a>(
    path: &Path,
    mount: u64,
    open: impl Iterator<Item = (Noted, Option<&'a Object>)>,
    numbers: &Numbers,
) -> io::Result<(File, u64, usize)> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    bytes.extend(mount.to_le_bytes());
    bytes.extend(numbers.last.to_le_bytes());
    let mut records = 0;
    for number in &numbers.open {
        let mut body = vec![2];
        put(&mut body, (*number).into())?;
        bytes.extend(framed(&body)?);
    }
    for (open, object) in open {
        bytes.extend(open_record(open, object)?);
        records += 1;
    }
    replace(path, |mut file| {
        file.write_all(&bytes)?;
        let kept = file.as_fd().try_clone_to_owned()?;
        Ok((File::from(kept), bytes.len() as u64, records))
    })
}

fn open_record(open: Noted, object: Option<&Object>) -> io::Result<Vec<u8>> {
    let Noted { number, handle, request, backing } = open;
    let mut body = vec![0];
    for value in [request, number, handle, backing.unwrap_or(0).into()] {
        put(&mut body, value)?;
    }
    if let Some(object) = object {
        write_object(&mut body, object)?;
    }
    framed(&body)
}

fn framed(body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(body.len()).map_err(|_| invalid("longer than a record can be"))?;
    let mut record = Vec::with_capacity(FRAME + body.len());
    record.extend(length.to_le_bytes());
    record.extend((!length).to_le_bytes());
    record.extend(crc(body).to_le_bytes());
    record.extend(body);
    Ok(record)
}

fn crc(body: &[u8]) -> u32 {
    let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, body);
    u32::try_from(crc).expect("a CRC of 32 bits")
}

impl Left {
    /// What the journal of a mount says.
    ///
    /// # Errors
    /// All but [`ResumeError::Ended`].
    pub(super) fn read(ledger: &Ledger) -> Result<Self, ResumeError> {
        let content = fs::read(ledger.opens()).map_err(missing(WHAT))?;
        let mut input = &content[..];
        check_header(&mut input, MAGIC, VERSION, WHAT)?;
        let mut mount = [0; 8];
        input.read_exact(&mut mount).map_err(damaged(WHAT))?;
        if u64::from_le_bytes(mount) != ledger.mount() {
            return Err(ResumeError::Other { what: WHAT });
        }
        let mut reading = Reading::default();
        reading.all(input).map_err(damaged(WHAT))?;
        Ok(reading.left())
    }
}

/// What was open after each record.
#[derive(Debug, Default)]
struct Reading {
    inodes: HashMap<u64, Inode>,
    of_handle: HashMap<u64, u64>,
    numbers: Numbers,
}

impl Reading {
    fn all(&mut self, mut input: &[u8]) -> io::Result<()> {
        let (last, rest) = input.split_first_chunk().ok_or_else(|| invalid("no beginning"))?;
        self.numbers.last = u32::from_le_bytes(*last);
        input = rest;
        while let Some((frame, rest)) = input.split_first_chunk::<FRAME>() {
            let [a, b, c, d, crc_bytes @ ..] = *frame;
            let length = u16::from_le_bytes([a, b]);
            if length != !u16::from_le_bytes([c, d]) {
                return Err(invalid("no record"));
            }
            // Else its process died while it wrote.
            let Some((body, rest)) = rest.split_at_checked(length.into()) else { break };
            if crc(body) != u32::from_le_bytes(crc_bytes) {
                return Err(invalid("a record with another check sum"));
            }
            self.record(body)?;
            input = rest;
        }
        Ok(())
    }

    fn record(&mut self, body: &[u8]) -> io::Result<()> {
        let (kind, mut input) = body.split_first().ok_or_else(|| invalid("an empty record"))?;
        match kind {
            0 => self.open(input),
            1 => {
                self.release(take(&mut input)?);
                Ok(())
            }
            2 => {
                self.backing(take(&mut input)?)?;
                Ok(())
            }
            _ => Err(invalid("no kind of record")),
        }
    }

    fn open(&mut self, mut input: &[u8]) -> io::Result<()> {
        let mut word = || take(&mut input);
        let (request, number, handle, backing) = (word()?, word()?, word()?, word()?);
        let backing = if backing == 0 { None } else { Some(self.backing(backing)?) };
        if !input.is_empty() {
            let object = read_object(&mut input)?;
            let closed = || Inode { number, object, backing, handles: HashMap::new() };
            self.inodes.entry(number).or_insert_with(closed);
        }
        let inode = self.inodes.get_mut(&number).ok_or_else(|| invalid("an unknown inode"))?;
        inode.handles.insert(handle, request);
        self.of_handle.insert(handle, number);
        Ok(())
    }

    fn release(&mut self, handle: u64) {
        let Some(number) = self.of_handle.remove(&handle) else { return };
        let Some(inode) = self.inodes.get_mut(&number) else { return };
        inode.handles.remove(&handle);
        if inode.handles.is_empty() {
            self.inodes.remove(&number);
        }
    }

    fn backing(&mut self, number: u64) -> io::Result<u32> {
        let number = u32::try_from(number).map_err(|_| invalid("no backing file"))?;
        self.numbers.open.insert(number);
        self.numbers.last = self.numbers.last.max(number);
        Ok(number)
    }

    fn left(self) -> Left {
        Left { inodes: self.inodes.into_values().collect(), numbers: self.numbers }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::view::fuse::LedgerPlace;
    use crate::view::fuse::tests::object;

    fn handle(number: u64, handle: u64, backing: Option<u32>) -> Noted {
        Noted { number, handle, request: 2 * handle, backing }
    }

    fn journal(directory: &Path) -> (Ledger, Journal) {
        let ledger = Ledger::create(&LedgerPlace::within(directory)).unwrap();
        let numbers = Numbers::default();
        let journal = Journal::create(&ledger, std::iter::empty(), &numbers).unwrap();
        (ledger, journal)
    }

    /// Handles by inode, each with its request, and backing files.
    fn left(ledger: &Ledger) -> (Vec<Inode>, Numbers) {
        let Left { mut inodes, numbers } = Left::read(ledger).unwrap();
        inodes.sort_by_key(|inode| inode.number);
        (inodes, numbers)
    }

    /// Two inodes, one of which has two handles, the first of them closed.
    fn written(directory: &Path) -> (Ledger, Journal) {
        let (ledger, mut journal) = journal(directory);
        let (first, second) = (object("a", "1", 7), object("b", "2", 8));
        journal.opened(handle(10, 1, Some(5)), Some(&first)).unwrap();
        journal.opened(handle(10, 2, Some(5)), None).unwrap();
        journal.opened(handle(11, 3, None), Some(&second)).unwrap();
        journal.opened(handle(12, 4, Some(6)), Some(&second)).unwrap();
        journal.released(1).unwrap();
        journal.released(4).unwrap();
        (ledger, journal)
    }

    #[test]
    fn what_is_open_is_read_as_it_was_noted() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, _) = written(directory.path());
        let (inodes, numbers) = left(&ledger);
        let inode = |number, object, backing, handles: [(u64, u64); 1]| {
            let handles = HashMap::from(handles);
            Inode { number, object, backing, handles }
        };
        let wanted = [
            inode(10, object("a", "1", 7), Some(5), [(2, 4)]),
            inode(11, object("b", "2", 8), None, [(3, 6)]),
        ];
        assert_eq!(inodes, wanted);
        assert_eq!((numbers.last, numbers.open.into_iter().collect()), (6, vec![5, 6]));
    }

    #[test]
    fn a_journal_that_is_written_anew_says_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, mut journal) = written(directory.path());
        let (inodes, numbers) = left(&ledger);
        let open = inodes.iter().flat_map(|inode| {
            inode.handles.iter().map(|(known, request)| {
                let noted = handle(inode.number, *known, inode.backing);
                (Noted { request: *request, ..noted }, Some(&inode.object))
            })
        });
        journal.renew(open, &numbers).unwrap();
        assert_eq!(left(&ledger), (inodes, numbers));
        journal.released(2).unwrap();
        assert_eq!(left(&ledger).0.len(), 1);
        assert!(!ledger.opens().with_extension("new").exists());
    }

    #[test]
    fn a_journal_is_long_when_most_of_it_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let (_, mut journal) = journal(directory.path());
        let object = object("a", "1", 7);
        for n in 0..FEW as u64 {
            assert!(!journal.is_long(1));
            journal.opened(handle(n, n, None), Some(&object)).unwrap();
        }
        journal.released(0).unwrap();
        assert!(journal.is_long(1));
        assert!(!journal.is_long(FEW - 1));
    }

    #[test]
    fn a_record_that_a_process_died_in_was_not_answered() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, _) = written(directory.path());
        let whole = fs::read(ledger.opens()).unwrap();
        let mut counts = Vec::new();
        for length in MAGIC.len() + 1 + 8 + 4..=whole.len() {
            fs::write(ledger.opens(), &whole[..length]).unwrap();
            let handles = |inode: &Inode| inode.handles.len();
            counts.push(left(&ledger).0.iter().map(handles).sum::<usize>());
        }
        counts.dedup();
        assert_eq!(counts, [0, 1, 2, 3, 4, 3, 2]);
    }

    #[test]
    fn damage_is_refused_wherever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let (ledger, _) = written(directory.path());
        let good = fs::read(ledger.opens()).unwrap();
        // The highest number of a backing file only says what to close: any will do.
        let last = MAGIC.len() + 1 + 8..MAGIC.len() + 1 + 8 + 4;
        for bit in (0..good.len() * 8).filter(|bit| !last.contains(&(bit / 8))) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(ledger.opens(), bytes).unwrap();
            Left::read(&ledger).unwrap_err();
        }
    }
}
