//! What another process needs to go on with a mount, in directories of the mount's own.
//!
//! ```text
//! <ledger>/table   what is shown, replaced before a swap can be seen (place.rs says where)
//! <ledger>/opens   which files are open, appended before an open is answered (journal.rs)
//! <ledger>/taken   what was taken from the kernel and not answered, if it cannot send it again (taken.rs)
//!
//! table:  "s3vt" 1, 8 bytes that name the mount
//!         the listing; bytes: its inode numbers
//!         what the kernel must forget: names, each with its directory's number; directories
//!         the files that the last swap took away, each its number after a 1; then a 0
//!         32 bytes: SHA-256 of all of the above
//! ```
//!
//! After a crash at any moment the table is the one before a swap or the one after it, never a mix.
//! A swap that a process died in the middle of is one that has happened: nobody may have seen it, and
//! the kernel may or may not have been told, so it is told again. Files are not synced: a reboot ends
//! the mount too.
//!
//! All functions block.

use std::{
    io::{self, BufReader, ErrorKind, Read, Write},
    path::PathBuf,
};

use sha2::{Digest, Sha256};

use super::{LedgerPlace, ResumeError, notice::Untold, table::Table};
use crate::{
    listing::{Listing, read_object, write_object},
    object::Object,
    packed::{invalid, put, put_bytes, take, take_bytes},
    volume::Ownership,
};

const MAGIC: &[u8] = b"s3vt";
const VERSION: u8 = 1;
const WHAT: &str = "the inode table of a FUSE mount";

/// No name is longer.
const LONGEST_NAME: usize = 255;

/// Five bytes for each of so many files that no memory holds their listing.
const MOST_NUMBERS: usize = 16 << 30;

/// The ledger of one mount.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    place: LedgerPlace,
    mount: u64,
}

/// A name, and the number of its directory.
pub(super) type Name = (u64, Vec<u8>);

/// What a former process showed.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) listing: Listing,
    pub(super) table: Table,
    /// What the kernel may not have been told.
    pub(super) names: Vec<Name>,
    pub(super) directories: Vec<u64>,
    /// Files that are not listed any more, and may just have been looked up.
    pub(super) gone: Vec<(u64, Object)>,
}

impl Ledger {
    /// The ledger of a new mount.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn create(place: &LedgerPlace) -> io::Result<Self> {
        let ledger = Self::of(place, fastrand::u64(..));
        ledger.place.create()?;
        Ok(ledger)
    }

    /// The ledger of a mount that a former process made.
    pub(super) fn of(place: &LedgerPlace, mount: u64) -> Self {
        Self { place: place.of_mount(mount), mount }
    }

    /// What tells this mount from all others.
    pub(super) fn mount(&self) -> u64 {
        self.mount
    }

    /// Where the journal of open files is.
    pub(super) fn opens(&self) -> PathBuf {
        self.place.memory.join("opens")
    }

    /// Where the requests are that were taken and not answered.
    pub(super) fn taken(&self) -> PathBuf {
        self.place.memory.join("taken")
    }

    /// Notes what is to be shown, what the kernel must forget then, and which files are gone.
    ///
    /// # Errors
    /// What the file system answers; what was noted before stays.
    pub(super) fn save<'a>(
        &self,
        listing: &Listing,
        table: &Table,
        untold: Untold<'_, impl ExactSizeIterator<Item = (u64, &'a [u8])>>,
        gone: impl Iterator<Item = (u64, Object)>,
    ) -> io::Result<()> {
        self.place.replace_table(|file| {
            let mut out = Hashing::new(file);
            out.write_all(MAGIC)?;
            out.write_all(&[VERSION])?;
            out.write_all(&self.mount.to_le_bytes())?;
            listing.write(&mut out)?;
            put_bytes(&mut out, &table.numbers())?;
            put(&mut out, untold.names.len() as u64)?;
            for (directory, name) in untold.names {
                put(&mut out, directory)?;
                put_bytes(&mut out, name)?;
            }
            put(&mut out, untold.directories.len() as u64)?;
            untold.directories.iter().try_for_each(|number| put(&mut out, *number))?;
            for (number, object) in gone {
                put(&mut out, 1)?;
                put(&mut out, number)?;
                write_object(&mut out, &object)?;
            }
            put(&mut out, 0)?;
            let Hashing { inner, hash } = out;
            inner.write_all(&hash.finalize())
        })
    }

    /// What a former process showed last.
    ///
    /// # Errors
    /// All but [`ResumeError::Ended`].
    pub(super) fn load(&self, ownership: Ownership) -> Result<Shown, ResumeError> {
        let file = self.place.open_table().map_err(missing(WHAT))?;
        let mut input = Hashing::new(BufReader::new(file));
        let listing = self.listing(&mut input)?;
        let numbers = take_bytes(&mut input, MOST_NUMBERS).map_err(damaged(WHAT))?;
        let (names, directories) = untold(&mut input).map_err(damaged(WHAT))?;
        let gone = gone(&mut input).map_err(damaged(WHAT))?;
        let Hashing { mut inner, hash } = input;
        let mut check = Vec::new();
        inner.read_to_end(&mut check).map_err(damaged(WHAT))?;
        if hash.finalize()[..] != check[..] {
            return Err(ResumeError::Damaged { what: WHAT });
        }
        let table = Table::with_numbers(&listing, ownership, &numbers);
        let table = table.map_err(|source| ResumeError::Numbers { source })?;
        Ok(Shown { listing, table, names, directories, gone })
    }

    fn listing(&self, input: &mut impl Read) -> Result<Listing, ResumeError> {
        check_header(input, MAGIC, VERSION, WHAT)?;
        let mut mount = [0; 8];
        input.read_exact(&mut mount).map_err(damaged(WHAT))?;
        if u64::from_le_bytes(mount) != self.mount {
            return Err(ResumeError::Other { what: WHAT });
        }
        Listing::read(input).map_err(damaged(WHAT))
    }
}

fn untold(input: &mut impl Read) -> io::Result<(Vec<Name>, Vec<u64>)> {
    let (mut names, mut directories) = (Vec::new(), Vec::new());
    for _ in 0..take(input)? {
        names.push((take(input)?, take_bytes(input, LONGEST_NAME)?));
    }
    for _ in 0..take(input)? {
        directories.push(take(input)?);
    }
    Ok((names, directories))
}

fn gone(input: &mut impl Read) -> io::Result<Vec<(u64, Object)>> {
    let mut gone = Vec::new();
    loop {
        match take(input)? {
            0 => return Ok(gone),
            1 => gone.push((take(input)?, read_object(input)?)),
            _ => return Err(invalid("no file and no end")),
        }
    }
}

/// Reads what a file begins with.
pub(super) fn check_header(
    input: &mut impl Read,
    magic: &[u8],
    version: u8,
    what: &'static str,
) -> Result<(), ResumeError> {
    let mut found = [0; 5];
    input.read_exact(&mut found).map_err(damaged(what))?;
    match found.strip_prefix(magic) {
        Some([found]) if *found == version => Ok(()),
        Some([_]) => Err(ResumeError::Unknown { what }),
        _ => Err(ResumeError::Damaged { what }),
    }
}

/// A file that does not hold what it should, or cannot be read at all.
pub(super) fn damaged(what: &'static str) -> impl Fn(io::Error) -> ResumeError {
    move |source| match source.kind() {
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => ResumeError::Damaged { what },
        _ => ResumeError::System { action: "read what was left of", source },
    }
}

/// As [`damaged`], for a file that must be there.
pub(super) fn missing(what: &'static str) -> impl Fn(io::Error) -> ResumeError {
    move |source| match source.kind() {
        ErrorKind::NotFound => ResumeError::Damaged { what },
        _ => damaged(what)(source),
    }
}

/// Hashes what passes through.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }
}
