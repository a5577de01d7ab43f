//! What blobs there are, who may read them, and which were used last. Pure data but for the scan.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
};

use super::{
    blob::{BlobId, BlobName, Variant},
    pages,
};
use crate::source::Principal;

#[derive(Debug, Default)]
pub(super) struct Index {
    blobs: HashMap<BlobId, Blob>,
    /// Bytes of all variants, in whole pages.
    stored: u64,
    /// Bytes promised to fills.
    reserved: u64,
    /// Counts uses; the larger, the later.
    clock: u64,
}

#[derive(Debug)]
struct Blob {
    size: u64,
    crc: u64,
    /// Whom S3 let read it, while this process has run.
    readers: HashSet<Principal>,
    pins: usize,
    variants: Vec<Use>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    variant: Variant,
    at: u64,
    /// Written by this process; a file found at start is only as good as the disk.
    fresh: bool,
}

/// What the index says about content that was just fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This variant is here and was written by this process.
    Same,
    /// This variant is not here, or is of an earlier run.
    Missing,
    /// The same object version is here with other bytes.
    Differs,
}

impl Index {
    /// Reads the names of all blobs; other names are left alone.
    pub(super) fn scan(directory: &Path) -> io::Result<Self> {
        let mut index = Self::default();
        for entry in std::fs::read_dir(directory)? {
            if let Some(name) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                index.add(name, false);
            }
        }
        Ok(index)
    }

    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Bytes stored and reserved.
    pub(super) fn used(&self) -> u64 {
        self.stored + self.reserved
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Pins the blob if `principal` may read it.
    pub(super) fn pin_for(&mut self, id: &BlobId, principal: Principal) -> bool {
        let Some(blob) = self.blobs.get_mut(id) else { return false };
        let allowed = blob.readers.contains(&principal);
        blob.pins += usize::from(allowed);
        allowed
    }

    pub(super) fn unpin(&mut self, id: &BlobId) {
        if let Some(blob) = self.blobs.get_mut(id) {
            blob.pins = blob.pins.saturating_sub(1);
        }
    }

    /// Notes that S3 let `principal` read the blob, which is here, and pins it.
    pub(super) fn admit(&mut self, id: &BlobId, principal: Principal) {
        if let Some(blob) = self.blobs.get_mut(id) {
            blob.readers.insert(principal);
            blob.pins += 1;
        }
    }

    pub(super) fn known(&self, name: &BlobName) -> Known {
        let Some(blob) = self.blobs.get(&name.id) else { return Known::Missing };
        let fresh = |used: &&Use| used.fresh;
        match blob.variants.iter().find(fresh) {
            Some(_) if blob.crc != name.crc => Known::Differs,
            _ if blob.variants.iter().filter(fresh).any(|u| u.variant == name.variant) => {
                Known::Same
            }
            _ => Known::Missing,
        }
    }

    /// Adds a variant, replacing what an earlier run left under this id; returns the names of the
    /// replaced files whose name differs.
    pub(super) fn add(&mut self, name: BlobName, fresh: bool) -> Vec<BlobName> {
        let BlobName { id, size, crc, variant } = name;
        let replaced = if fresh { self.drop_stale(&name) } else { Vec::new() };
        self.clock += 1;
        let at = if fresh { self.clock } else { 0 };
        let blob = self.blobs.entry(id).or_insert_with(|| Blob {
            size,
            crc,
            readers: HashSet::new(),
            pins: 0,
            variants: Vec::new(),
        });
        blob.variants.push(Use { variant, at, fresh });
        self.stored += pages(size);
        replaced
    }

    /// Forgets the variants of earlier runs that fresh content replaces.
    fn drop_stale(&mut self, name: &BlobName) -> Vec<BlobName> {
        let Some(blob) = self.blobs.get_mut(&name.id) else { return Vec::new() };
        let differs = blob.crc != name.crc || blob.size != name.size;
        let (crc, size) = (blob.crc, blob.size);
        let stale = |used: &Use| !used.fresh && (differs || used.variant == name.variant);
        let dropped: Vec<_> = blob.variants.extract_if(.., |used| stale(used)).collect();
        (blob.crc, blob.size) = (name.crc, name.size);
        self.stored -= pages(size) * dropped.len() as u64;
        dropped
            .into_iter()
            .map(|used| BlobName { id: name.id, size, crc, variant: used.variant })
            .filter(|old| old != name)
            .collect()
    }

    pub(super) fn touch(&mut self, id: &BlobId, variant: Variant) {
        self.clock += 1;
        let clock = self.clock;
        let used = self
            .blobs
            .get_mut(id)
            .and_then(|blob| blob.variants.iter_mut().find(|used| used.variant == variant));
        if let Some(used) = used {
            used.at = clock;
        }
    }

    /// The file of a variant that this process wrote.
    pub(super) fn name_of(&self, id: &BlobId, variant: Variant) -> Option<BlobName> {
        self.names(id).find(|name| name.variant == variant)
    }

    /// The file of some variant that this process wrote.
    pub(super) fn any_name(&self, id: &BlobId) -> Option<BlobName> {
        self.names(id).next()
    }

    fn names(&self, id: &BlobId) -> impl Iterator<Item = BlobName> {
        self.blobs.get(id).into_iter().flat_map(move |blob| {
            let Blob { size, crc, .. } = *blob;
            let fresh = blob.variants.iter().filter(|used| used.fresh);
            fresh.map(move |used| BlobName { id: *id, size, crc, variant: used.variant })
        })
    }

    /// What may be evicted, the least recently used first.
    pub(super) fn candidates(&self) -> Vec<BlobName> {
        let unpinned = self.blobs.iter().filter(|(_, blob)| blob.pins == 0);
        let mut uses: Vec<_> = unpinned
            .flat_map(|(id, blob)| {
                let Blob { size, crc, .. } = *blob;
                let name = move |used: &Use| BlobName { id: *id, size, crc, variant: used.variant };
                blob.variants.iter().map(move |used| (used.at, name(used)))
            })
            .collect();
        uses.sort_unstable();
        uses.into_iter().map(|(_, name)| name).collect()
    }

    pub(super) fn remove(&mut self, name: &BlobName) {
        let Some(blob) = self.blobs.get_mut(&name.id) else { return };
        let before = blob.variants.len();
        blob.variants.retain(|used| used.variant != name.variant);
        let removed = (before - blob.variants.len()) as u64;
        if !blob.variants.iter().any(|used| used.fresh) {
            blob.readers.clear();
        }
        let empty = blob.variants.is_empty();
        self.stored -= pages(name.size) * removed;
        if empty {
            self.blobs.remove(&name.id);
        }
    }
}
