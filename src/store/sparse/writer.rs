//! Writing blocks as they arrive, into room that was set aside for them.

use std::{ops::Range, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::{
    Sparse, StoreError,
    map::{SLOT, Slot},
    room_of,
};
use crate::store::{Need, Store};

/// Room for blocks on their way; what is not used returns when it is dropped.
#[derive(Debug)]
pub struct Room {
    store: Store,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut index = self.store.0.index.lock();
        index.partials.release(self.bytes);
        self.store.0.show(&index);
    }
}

/// Takes the content of neighbouring blocks in order, in pieces of any length. What it has taken of
/// a block that is not whole yet is lost when it is dropped.
#[derive(Debug)]
pub struct Writer {
    sparse: Arc<Sparse>,
    room: Room,
    /// Where the next byte goes.
    at: u64,
    crc: Digest,
}

impl Sparse {
    /// Sets room aside for blocks and takes their content, which the caller has from S3 as that of
    /// this very object version. Evicts what was used least recently, if need be.
    ///
    /// # Errors
    /// As [`Store::reserve`].
    ///
    /// # Blocking
    /// As [`Store::reserve`].
    pub fn writer(self: &Arc<Self>, blocks: Range<u64>) -> Result<Writer, StoreError> {
        let at = blocks.start * self.name.block;
        let end = self.name.size.min(blocks.end * self.name.block);
        let bytes = room_of(end.saturating_sub(at), blocks.end - blocks.start);
        let mut index = self.store.0.make_room(|_| Need { bytes, inodes: 0 })?;
        index.partials.reserve(bytes);
        self.store.0.show(&index);
        drop(index);
        let room = Room { store: self.store.clone(), bytes };
        let crc = Digest::new(CrcAlgorithm::Crc64Nvme);
        Ok(Writer { sparse: Arc::clone(self), room, at, crc })
    }
}

impl Writer {
    /// Takes the next bytes. Blocks that are whole then can be read from now on.
    ///
    /// # Errors
    /// What the file system answers; then nothing of `chunks` counts.
    ///
    /// # Blocking
    /// Writes to the page cache; may wait for the disk.
    pub fn write(&mut self, chunks: &[Bytes]) -> Result<(), StoreError> {
        let first = self.at / self.sparse.name.block;
        let mut slots = Vec::new();
        for chunk in chunks {
            let written = self.sparse.data.write_all_at(chunk, self.at);
            written.map_err(self.sparse.store.io("write a sparse file"))?;
            self.digest(chunk, &mut slots);
        }
        if slots.is_empty() {
            return Ok(());
        }
        let recorded = self.sparse.map.write_all_at(&slots, first * SLOT as u64);
        recorded.map_err(self.sparse.store.io("write a sparse file's map"))?;
        self.land(first..first + (slots.len() / SLOT) as u64);
        Ok(())
    }

    fn digest(&mut self, mut bytes: &[u8], slots: &mut Vec<u8>) {
        let (name, boot) = (self.sparse.name, self.sparse.boot);
        while !bytes.is_empty() {
            let index = self.at / name.block;
            let end = (index * name.block).saturating_add(name.length(index));
            let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.crc.update(now);
            self.at += now.len() as u64;
            bytes = later;
            if self.at == end {
                let crc = self.crc.finalize();
                self.crc = Digest::new(CrcAlgorithm::Crc64Nvme);
                slots.extend_from_slice(&Slot { crc, boot }.encode(index));
            }
        }
    }

    /// Blocks that were here already take no more room.
    fn land(&mut self, blocks: Range<u64>) {
        let Sparse { store, name, token, bits, .. } = &*self.sparse;
        let mut bits = bits.lock();
        let new: Vec<u64> = blocks.filter(|index| bits.add(*index)).collect();
        drop(bits);
        let (Some(&first), Some(&last)) = (new.first(), new.last()) else { return };
        let length: u64 = new.iter().map(|index| super::super::pages(name.length(*index))).sum();
        let slots = super::super::pages((last - first + 1) * SLOT as u64);
        let bytes = (length + slots.min(super::PAGE)).min(self.room.bytes);
        let mut index = store.0.index.lock();
        index.partials.land(&name.id, *token, bytes);
        self.room.bytes -= bytes;
    }
}
