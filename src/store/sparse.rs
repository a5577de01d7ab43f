//! Content that is here in part: one sparse file for an object version, and a map of its blocks.
//!
//! ```text
//! <root>/v1/parts/<id>-<size>-<block>        the content, with holes; length as the object's
//!           .../<the same>.map               which blocks are there: see `map`
//! ```
//!
//! Rules. A block's data is written before its slot in the map, so after a crash of the process, which
//! leaves the page cache, what the map says is true. After a crash of the machine it need not be: a
//! slot tells in which boot it was true, and one of another boot is proven by its CRC before the
//! block's first use. Room is set aside for blocks on their way, never for the whole file. A file
//! that is open is not evicted; one that is not goes as a whole, like any blob.
//!
//! When all blocks are there and the whole has been verified by whoever knows the object, the file
//! is linked into `blobs/` and is an ordinary blob from then on; its readers go on reading it.
//!
//! One [`Sparse`] is one opened file with its own idea of what is in it: open each once.

mod map;
mod name;
mod partials;
mod writer;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crc_fast::{CrcAlgorithm, checksum_combine};
use nix::fcntl::OFlag;
use parking_lot::Mutex;

use self::map::{Bits, SLOT, Slot, boot_tag};
pub use self::writer::{Room, Writer};
pub(super) use self::{name::PartialName, partials::Partials};
use super::{
    BlobId, Content, Lease, Need, PAGE, Store, StoreError, Variant, fill, unnamed::Unnamed,
    verify::BOOT_ID,
};
use crate::{object::ObjectVersion, source::Principal};

/// Slots are read so many at a time.
const SLOTS: usize = 64 << 10;

/// An open sparse file; pinned in the store until it is dropped.
#[derive(Debug)]
pub struct Sparse {
    store: Store,
    name: PartialName,
    token: u64,
    data: File,
    map: File,
    boot: u32,
    bits: Mutex<Bits>,
    /// Held by who reads blocks in doubt through.
    proving: Mutex<()>,
}

impl Store {
    /// Opens the sparse file of `version`, cut into blocks of `block` bytes; makes it if it is not
    /// here. One that is cut otherwise is replaced. The object must not be empty.
    ///
    /// # Errors
    /// What the file system answers.
    ///
    /// # Blocking
    /// A few system calls; reads the map, 16 bytes for each block.
    pub fn sparse(&self, version: &ObjectVersion, block: u64) -> Result<Sparse, StoreError> {
        let wanted = PartialName { id: BlobId::of(version), size: version.size, block };
        let (mut name, mut token) = self.pin_partial(wanted)?;
        if name != wanted {
            // Cut otherwise, in an earlier run: nobody has it open.
            let mut index = self.0.index.lock();
            index.partials.remove(&name.id, token);
            remove_files(&self.0.root, &name);
            drop(index);
            (name, token) = self.pin_partial(wanted)?;
        }
        let opened = self.open_partial(name, token);
        if opened.is_err() {
            self.0.index.lock().partials.unpin(&name.id, token);
        }
        opened
    }

    fn pin_partial(&self, wanted: PartialName) -> Result<(PartialName, u64), StoreError> {
        let inodes = if self.has_partial(&wanted.id) { 0 } else { 2 };
        let mut index = self.0.make_room(|_| Need { bytes: 0, inodes })?;
        let at = index.tick();
        Ok(index.partials.pin(wanted, at))
    }

    fn has_partial(&self, id: &BlobId) -> bool {
        self.0.index.lock().partials.has(id)
    }

    fn open_partial(&self, name: PartialName, token: u64) -> Result<Sparse, StoreError> {
        let directory = self.0.root.join("parts");
        let open = || -> io::Result<_> {
            let data = open_file(&directory.join(name.to_string()))?;
            let map = open_file(&directory.join(name.map()))?;
            let boot = boot_tag(BOOT_ID.as_deref());
            // A file that lost its end has lost more, for all we know.
            let trusted = data.metadata()?.len() == name.size;
            let bits = read_map(&map, &name, trusted.then_some(boot))?;
            if !trusted {
                data.set_len(name.size)?;
            }
            Ok((data, map, boot, bits))
        };
        let (data, map, boot, bits) = open().map_err(self.io("open a sparse file"))?;
        let bits = Mutex::new(bits);
        let proving = Mutex::default();
        Ok(Sparse { store: self.clone(), name, token, data, map, boot, bits, proving })
    }

    /// Whether some of the content of `version` may be here in a sparse file.
    pub fn has_part_of(&self, version: &ObjectVersion) -> bool {
        self.has_partial(&BlobId::of(version))
    }

    /// Notes that S3 just let `principal` read this very object version, of which parts are here.
    pub fn permit_parts(&self, version: &ObjectVersion, principal: Principal) {
        let mut index = self.0.index.lock();
        let lifetime = index.proof_lifetime;
        index.partials.permit(&BlobId::of(version), principal, lifetime);
    }

    /// Whether S3 let `principal` read this very object version, not too long ago.
    pub fn permits_parts(&self, version: &ObjectVersion, principal: Principal) -> bool {
        let index = self.0.index.lock();
        index.partials.is_permitted(&BlobId::of(version), principal, index.proof_lifetime)
    }
}

impl Sparse {
    /// Whether all blocks in the range of block numbers can be read.
    pub fn has_all(&self, blocks: Range<u64>) -> bool {
        self.bits.lock().has_all(blocks)
    }

    /// Whether all of the object can be read.
    pub fn is_complete(&self) -> bool {
        self.bits.lock().is_complete()
    }

    /// The runs of blocks that are not here and must be fetched. Blocks in doubt are not among them:
    /// see [`Sparse::has_doubts`].
    pub fn missing(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        self.bits.lock().missing(blocks)
    }

    /// Whether blocks of the range are of an earlier boot, and must be proven first.
    pub fn has_doubts(&self, blocks: Range<u64>) -> bool {
        !self.bits.lock().doubtful(blocks).is_empty()
    }

    /// Notes that S3 just let `principal` read this very object version.
    pub fn permit(&self, principal: Principal) {
        let mut index = self.store.0.index.lock();
        let lifetime = index.proof_lifetime;
        index.partials.permit(&self.name.id, principal, lifetime);
    }

    /// Reads the blocks in doubt through: each is present or missing afterwards.
    ///
    /// # Errors
    /// What the file system answers, but for a block that the disk cannot give: it is missing.
    ///
    /// # Blocking
    /// Reads the blocks.
    pub fn settle_doubts(&self, blocks: Range<u64>) -> Result<(), StoreError> {
        // One at a time: who looked at a bad block too late would empty the slot of the good one that
        // came in its place. Nobody writes what is still in doubt.
        let _proving = self.proving.lock();
        let doubtful = self.bits.lock().doubtful(blocks);
        for index in doubtful {
            let is_good = self.prove(index).map_err(self.store.io("read a sparse file"))?;
            let mut bits = self.bits.lock();
            if is_good {
                bits.add(index);
            } else {
                bits.remove(index);
            }
        }
        Ok(())
    }

    /// Whether a block is what its slot says; the slot is true of this boot then, or empty.
    fn prove(&self, index: u64) -> io::Result<bool> {
        let mut slot = [0; SLOT];
        let at = index * SLOT as u64;
        self.map.read_exact_at(&mut slot, at)?;
        let proven = Slot::decode(index, &slot).filter(|slot| self.is_good(index, *slot));
        let slot = proven.map(|slot| Slot { boot: self.boot, ..slot }.encode(index));
        self.map.write_all_at(&slot.unwrap_or_default(), at)?;
        Ok(proven.is_some())
    }

    fn is_good(&self, index: u64, slot: Slot) -> bool {
        let length = usize::try_from(self.name.length(index)).unwrap_or(usize::MAX);
        let mut content = vec![0; length];
        if let Err(error) = self.data.read_exact_at(&mut content, index * self.name.block) {
            tracing::warn!(file = %self.name, index, %error, "a block cannot be read");
            return false;
        }
        crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &content) == slot.crc
    }

    /// The file. Read only what [`Sparse::has_all`] says is there.
    pub fn file(&self) -> &File {
        &self.data
    }

    /// The CRC-64/NVME of all of the content, put together from those of the blocks.
    ///
    /// # Errors
    /// `Corrupt` if a block is not here; what the file system answers.
    ///
    /// # Blocking
    /// Reads the map.
    pub fn crc(&self) -> Result<u64, StoreError> {
        let missing = || StoreError::Corrupt("a block is missing from a sparse file".to_owned());
        let mut whole = 0;
        let slots = each_slot(&self.map, &self.name, |index, slot| {
            let length = self.name.length(index);
            let slot: Slot = slot?;
            whole = match index {
                0 => slot.crc,
                _ => checksum_combine(CrcAlgorithm::Crc64Nvme, whole, slot.crc, length),
            };
            Some(())
        });
        let slots = slots.map_err(self.store.io("read a sparse file's map"))?;
        if slots == self.name.blocks() { Ok(whole) } else { Err(missing()) }
    }

    /// Makes the file, which is whole and verified, a blob that its readers and `principal` may
    /// read.
    ///
    /// # Errors
    /// As [`super::Fill::commit`].
    ///
    /// # Blocking
    /// A few system calls.
    pub fn complete(
        &self,
        principal: Principal,
        variant: Variant,
        content: Content,
    ) -> Result<Lease, StoreError> {
        let path = self.store.0.root.join("parts").join(self.name.to_string());
        let data = self.data.try_clone().map_err(self.store.io("open a sparse file"))?;
        let (id, size) = (self.name.id, self.name.size);
        let file = Unnamed::Named(data, path);
        fill::name_blob(&self.store, &file, (id, size), variant, content)?;
        let mut index = self.store.0.index.lock();
        index.inherit(&id);
        let admitted = index.admit(&id, principal);
        drop(index);
        self.discard();
        if admitted { Ok(Lease { store: self.store.clone(), id }) } else { Err(StoreError::Gone) }
    }

    /// Removes the file's name and its map: the next to open the object version finds nothing.
    /// Whoever has it open can read on.
    ///
    /// # Blocking
    /// Two system calls.
    pub fn discard(&self) {
        let mut index = self.store.0.index.lock();
        if index.partials.remove(&self.name.id, self.token) {
            remove_files(&self.store.0.root, &self.name);
        }
        self.store.0.show(&index);
    }
}

impl AsRef<File> for Sparse {
    fn as_ref(&self) -> &File {
        &self.data
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        self.store.0.index.lock().partials.unpin(&self.name.id, self.token);
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Removes a sparse file. Its map last: a file without one is removed at the next start, and so is
/// a map without its file.
pub(super) fn remove_files(root: &Path, name: &PartialName) {
    for file in [name.to_string(), name.map()] {
        match std::fs::remove_file(root.join("parts").join(&file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file, %error, "failed to remove a sparse file");
            }
            _ => {}
        }
    }
}

/// Which blocks there are: present if they were in this boot, else in doubt.
fn read_map(map: &File, name: &PartialName, boot: Option<u32>) -> io::Result<Bits> {
    let mut bits = Bits::new(name.blocks());
    each_slot(map, name, |index, slot| {
        match slot {
            Some(slot) if slot.boot != 0 && Some(slot.boot) == boot => drop(bits.add(index)),
            Some(_) => bits.doubt(index),
            None => {}
        }
        Some(())
    })?;
    Ok(bits)
}

/// Shows the slots in order until `look` has seen enough, or the map ends; returns how many it took.
fn each_slot(
    map: &File,
    name: &PartialName,
    mut look: impl FnMut(u64, Option<Slot>) -> Option<()>,
) -> io::Result<u64> {
    let mut buffer = Vec::with_capacity(SLOTS * SLOT);
    let (mut index, blocks) = (0, name.blocks());
    while index < blocks {
        buffer.clear();
        let (mut from, most) = (At(map, index * SLOT as u64), (SLOTS * SLOT) as u64);
        if from.by_ref().take(most).read_to_end(&mut buffer)? < SLOT {
            break;
        }
        for slot in buffer.chunks_exact(SLOT).take(usize::try_from(blocks - index).unwrap_or(SLOTS))
        {
            if look(index, Slot::decode(index, slot)).is_none() {
                return Ok(index);
            }
            index += 1;
        }
    }
    Ok(index)
}

/// Reads a file from a place on, without moving anybody else's.
struct At<'a>(&'a File, u64);

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read_at(buffer, self.1)?;
        self.1 += length as u64;
        Ok(length)
    }
}

/// The room that `length` bytes of content take at most, with their slots.
fn room_of(length: u64, blocks: u64) -> u64 {
    super::pages(length) + super::pages(blocks * SLOT as u64).min(PAGE * blocks)
}

#[cfg(test)]
mod tests;
