//! Where a ledger lies: in memory, but for a table that would take too much of it.
//!
//! ```text
//! <memory>/table   what is shown, if it is short
//! <disk>/table     else; it counts while the other one is not there
//! ```
//!
//! So one rename, or one unlink, is the moment at which another table counts, and a crash leaves the
//! former one or the new one, wherever each of them lies.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// A longer table goes to the disk, in bytes: that of some hundred files.
const SHORT: usize = 64 << 10;

/// The two directories of a ledger.
#[derive(Debug, Clone)]
pub struct LedgerPlace {
    /// On a tmpfs: making a file there takes a tenth of what it takes on a disk, and it is written
    /// to while a process waits to open a file.
    pub memory: PathBuf,
    /// On a disk. Made when it is needed.
    pub disk: PathBuf,
}

impl LedgerPlace {
    /// Both in one directory.
    #[cfg(test)]
    pub(super) fn within(directory: &Path) -> Self {
        Self { memory: directory.to_owned(), disk: directory.join("disk") }
    }

    /// The place of one mount of all that are made here: one that is unmounted may be served for a
    /// while, and go on writing.
    pub(super) fn of_mount(&self, mount: u64) -> Self {
        let mount = format!("{mount:016x}");
        Self { memory: self.memory.join(&mount), disk: self.disk.join(mount) }
    }

    pub(super) fn create(&self) -> io::Result<()> {
        create(&self.memory)
    }

    /// Writes a table in the place of the one before, all of it or nothing.
    ///
    /// # Errors
    /// What the file systems answer, and `write`; what was there before stays.
    pub(super) fn replace_table(
        &self,
        write: impl FnOnce(&mut Table<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut table = Table { short: Vec::new(), disk: &self.disk, long: None };
        write(&mut table)?;
        let Table { short, long, .. } = table;
        let Some(mut long) = long else {
            replace(&self.short(), |mut file| file.write_all(&short))?;
            return remove(&self.long());
        };
        long.flush()?;
        fs::rename(anew(&self.long()), self.long())?;
        remove(&self.short())
    }

    /// The table that counts.
    pub(super) fn open_table(&self) -> io::Result<File> {
        match File::open(self.short()) {
            Err(error) if error.kind() == ErrorKind::NotFound => File::open(self.long()),
            found => found,
        }
    }

    fn short(&self) -> PathBuf {
        self.memory.join("table")
    }

    fn long(&self) -> PathBuf {
        self.disk.join("table")
    }
}

/// A table that is being written.
#[derive(Debug)]
pub(super) struct Table<'a> {
    short: Vec<u8>,
    disk: &'a Path,
    /// Since it is too long for memory.
    long: Option<BufWriter<File>>,
}

impl Write for Table<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(long) = &mut self.long {
            return long.write(bytes);
        }
        if self.short.len() + bytes.len() <= SHORT {
            return self.short.write(bytes);
        }
        create(self.disk)?;
        let mut long = BufWriter::new(open_anew(&self.disk.join("table"))?);
        long.write_all(&self.short)?;
        let written = long.write(bytes)?;
        (self.short, self.long) = (Vec::new(), Some(long));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.long.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Writes a file in the place of another, all of it or nothing.
pub(super) fn replace<T>(path: &Path, write: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
    let file = open_anew(path)?;
    let written = write(&file)?;
    fs::rename(anew(path), path)?;
    Ok(written)
}

fn open_anew(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    let file = options.open(anew(path))?;
    file.set_len(0)?;
    Ok(file)
}

fn anew(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn written(place: &LedgerPlace, byte: u8, length: usize) -> io::Result<()> {
        place.replace_table(|table| {
            // In pieces, as a table is.
            (0..length).try_for_each(|_| table.write_all(&[byte]))
        })
    }

    fn read(place: &LedgerPlace) -> Vec<u8> {
        let mut content = Vec::new();
        place.open_table().unwrap().read_to_end(&mut content).unwrap();
        content
    }

    #[test]
    fn the_last_table_counts_wherever_it_lies() {
        let directory = tempfile::tempdir().unwrap();
        let place = LedgerPlace::within(directory.path());
        place.create().unwrap();
        assert_eq!(place.open_table().unwrap_err().kind(), ErrorKind::NotFound);
        for (round, length) in [10, SHORT, SHORT + 1, 3 * SHORT, 7, SHORT + 1, 0].iter().enumerate()
        {
            let byte = u8::try_from(round).unwrap();
            written(&place, byte, *length).unwrap();
            assert_eq!(read(&place), vec![byte; *length], "round {round}");
            assert_eq!(place.short().exists(), *length <= SHORT);
            assert_eq!(place.long().exists(), *length > SHORT);
        }
    }

    #[test]
    fn a_table_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let place = LedgerPlace::within(directory.path());
        place.create().unwrap();
        for before in [5, 2 * SHORT] {
            written(&place, 1, before).unwrap();
            for after in [3, 3 * SHORT] {
                let failed = place.replace_table(|table| {
                    table.write_all(&vec![2; after])?;
                    Err(io::Error::other("no"))
                });
                assert_eq!(failed.unwrap_err().to_string(), "no");
                assert_eq!(read(&place), vec![1; before]);
            }
        }
    }

    /// A crash between the two steps of going from one place to the other.
    #[test]
    fn a_crash_leaves_one_of_both() {
        let directory = tempfile::tempdir().unwrap();
        let place = LedgerPlace::within(directory.path());
        place.create().unwrap();
        written(&place, 1, 2 * SHORT).unwrap();
        let long = fs::read(place.long()).unwrap();
        written(&place, 2, 9).unwrap();
        // The short one counts, though the long one is not removed yet.
        fs::write(place.long(), &long).unwrap();
        assert_eq!(read(&place), [2; 9]);
        // A long one is there, and the short one still counts until it is unlinked.
        written(&place, 3, 2 * SHORT).unwrap();
        assert_eq!(read(&place), vec![3; 2 * SHORT]);
    }
}
