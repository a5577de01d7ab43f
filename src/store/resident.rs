//! Reading files whose content is in memory already, on whichever thread asks.
//!
//! Going to a thread for blocking work and back costs several times what copying 128 KiB out of the
//! page cache does, and most reads of cached content find it there. So they are tried at once, in a
//! way that never waits for a disk (`RWF_NOWAIT`); only what was not there goes elsewhere.
//! Source: preadv2(2).

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
};

use rustix::io::{ReadWriteFlags, preadv2};

use super::Medium;

/// Reads into `buffer` what is in memory of the file from `offset` on; returns how many bytes that
/// are, up to the first that is not. 0 where the file system cannot tell.
///
/// # Blocking
/// Never.
pub fn read_resident(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        let mut rest = [IoSliceMut::new(&mut buffer[done..])];
        match preadv2(file, &mut rest, offset + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(length) if length > 0 => done += length,
            _ => break,
        }
    }
    done
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
/// What the file system answers; also where the file ends early.
///
/// # Blocking
/// May wait for the disk.
pub fn read_exact(file: &File, buffer: &mut [u8], offset: u64) -> Result<(), super::StoreError> {
    let read = file.read_exact_at(buffer, offset);
    read.map_err(|error: io::Error| super::io_error(Medium::Disk, "read a blob", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_read_in_any_case() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buffer = [0; 4];
        let resident = read_resident(&file, &mut buffer, 3);
        read_exact(&file, &mut buffer[resident..], 3 + resident as u64).unwrap();
        assert_eq!(&buffer, b"3456");
        assert!(read_resident(&file, &mut [0; 4], 10) == 0, "the end");
        assert!(read_exact(&file, &mut [0; 4], 8).is_err());
    }
}
