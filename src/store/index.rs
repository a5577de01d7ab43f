//! What blobs there are, who may read them, and which were used last. Pure data but for the scan.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    os::unix::fs::DirEntryExt,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Medium, Wanted,
    blob::{BlobId, BlobName, ContentDigest, Sharers, Variant},
    pages,
    sparse::{PartialName, Partials},
};
use crate::source::Principal;

/// How long a proof counts unless the configuration says otherwise.
const PROOF_LIFETIME: Duration = Duration::from_mins(10);

/// A map by blob. Their ids are SHA-256 digests, which need no further hashing.
type ByBlob<K, V> = HashMap<K, V, BuildHasherDefault<Digested>>;

#[derive(Debug, Default)]
pub(super) struct Index {
    blobs: ByBlob<BlobId, Blob>,
    /// Bytes of all variants, in whole pages.
    stored: u64,
    /// Room set aside for blobs to come, once for all who wait for the same.
    incoming: ByBlob<(BlobId, Variant), Incoming>,
    /// The sum of it, in bytes.
    reserved: u64,
    /// Bytes of those that are in files already.
    written: u64,
    /// What is here in part.
    pub(super) partials: Partials,
    /// Counts uses; the larger, the later.
    clock: u64,
    /// How long S3's word that a principal may read a blob counts.
    pub(super) proof_lifetime: Duration,
}

/// What may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Victim {
    /// A variant of a blob.
    Blob(BlobName),
    /// A sparse file that nobody has open.
    Partial { name: PartialName, token: u64, bytes: u64 },
}

#[derive(Debug)]
struct Blob {
    size: u64,
    crc: u64,
    /// Whom S3 let read it, as far as this process knows, and when it last said so. None while no
    /// file is verified.
    readers: HashMap<Principal, Instant>,
    pins: usize,
    variants: Vec<Use>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    variant: Variant,
    digest: Option<ContentDigest>,
    inode: u64,
    at: u64,
    /// Written or read through by this process; before that, a file is only as good as the disk.
    /// (A tmpfs is as good as the process.)
    verified: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Incoming {
    holders: usize,
    /// None left once the blob is here.
    bytes: u64,
}

/// What the index says about content that was just fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// This variant is here.
    Same,
    /// This variant is not here.
    Missing,
    /// The same object version is here with other bytes.
    Differs,
}

/// Takes the hash of a key from the digest in it; what else is in it is mixed in.
#[derive(Debug, Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn write(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Blob {
    /// Whether other bytes with the same CRC are here.
    fn is_forged(&self, name: &BlobName) -> bool {
        let mut digests = self.variants.iter().filter_map(|used| used.digest);
        name.digest.is_some_and(|digest| digests.any(|known| known != digest))
    }

    fn name(&self, id: BlobId, used: &Use) -> BlobName {
        let (size, crc, variant, digest) = (self.size, self.crc, used.variant, used.digest);
        BlobName { id, size, crc, variant, digest }
    }
}

impl Index {
    /// Reads the names of all blobs; other names are left alone. Files that claim one object version
    /// with different bytes go, since nothing tells which to trust.
    pub(super) fn scan(directory: &Path, medium: Medium) -> io::Result<Self> {
        let mut index = Self { proof_lifetime: PROOF_LIFETIME, ..Self::default() };
        let mut disputed = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|name| name.parse::<BlobName>().ok());
            let Some(name) = name else { continue };
            match index.known(&name) {
                Known::Missing => {
                    index.insert(name, entry.ino(), medium == Medium::Memory);
                }
                Known::Differs => disputed.push(name),
                Known::Same => {}
            }
        }
        for name in disputed {
            let mut files = index.files_of(&name.id);
            files.push(name);
            for file in files {
                index.remove(&file);
                if let Err(error) = std::fs::remove_file(directory.join(file.to_string())) {
                    tracing::warn!(blob = %file, %error, "failed to remove a disputed blob");
                }
            }
        }
        Ok(index)
    }

    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Bytes stored and reserved.
    pub(super) fn used(&self) -> u64 {
        self.stored + self.reserved + self.partials.used()
    }

    /// Bytes that are promised, and that the file system still shows as free.
    pub(super) fn outstanding(&self) -> u64 {
        self.reserved.saturating_sub(self.written) + self.partials.outstanding()
    }

    /// A moment later than all before.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The bytes that nobody has set aside yet for what is wanted.
    pub(super) fn uncovered(&self, wanted: &[Wanted]) -> u64 {
        let is_new = |w: &&Wanted| !self.incoming.contains_key(&(w.id, w.variant));
        wanted.iter().filter(is_new).map(|w| pages(w.size)).sum()
    }

    /// Sets room aside for what is wanted, each once for all its holders.
    pub(super) fn reserve(&mut self, wanted: &[Wanted]) {
        for Wanted { id, variant, size } in wanted {
            let incoming = self.incoming.entry((*id, *variant)).or_insert_with(|| {
                self.reserved += pages(*size);
                Incoming { holders: 0, bytes: pages(*size) }
            });
            incoming.holders += 1;
        }
    }

    /// The blob is here: its room is no longer promised, but used.
    pub(super) fn spend(&mut self, id: BlobId, variant: Variant) {
        if let Some(incoming) = self.incoming.get_mut(&(id, variant)) {
            self.reserved -= std::mem::take(&mut incoming.bytes);
        }
    }

    /// One holder less; with the last, what is not used returns.
    pub(super) fn release(&mut self, wanted: &[Wanted]) {
        for Wanted { id, variant, .. } in wanted {
            let key = (*id, *variant);
            let Some(incoming) = self.incoming.get_mut(&key) else { continue };
            incoming.holders -= 1;
            if incoming.holders == 0 {
                self.reserved -= incoming.bytes;
                self.incoming.remove(&key);
            }
        }
    }

    pub(super) fn write(&mut self, bytes: u64) {
        self.written += bytes;
    }

    pub(super) fn unwrite(&mut self, bytes: u64) {
        self.written = self.written.saturating_sub(bytes);
    }

    /// Pins the blob, for whomever; false if it is not here.
    pub(super) fn pin(&mut self, id: &BlobId) -> bool {
        let blob = self.blobs.get_mut(id).filter(|blob| !blob.variants.is_empty());
        blob.map(|blob| blob.pins += 1).is_some()
    }

    /// Sets how long S3's word counts, for proofs that are here too.
    pub(super) fn set_proof_lifetime(&mut self, lifetime: Duration) {
        self.proof_lifetime = lifetime;
    }

    /// Pins the blob if `principal` may read it, as S3 said not too long ago.
    pub(super) fn pin_for(&mut self, id: &BlobId, principal: Principal) -> bool {
        let Some(blob) = self.blobs.get_mut(id) else { return false };
        let proof = blob.readers.get(&principal);
        let allowed = proof.is_some_and(|at| at.elapsed() < self.proof_lifetime);
        blob.pins += usize::from(allowed);
        allowed
    }

    /// Pins a blob whose file can be read at once, for a principal that may, or is known to be
    /// `allowed`.
    pub(super) fn pin_ready(
        &mut self,
        id: &BlobId,
        principal: Principal,
        allowed: bool,
        sharers: Option<Sharers>,
    ) -> bool {
        let ready = self.readable(id, sharers).is_some_and(|(_, verified)| verified);
        ready && (self.pin_for(id, principal) || (allowed && self.pin(id)))
    }

    pub(super) fn unpin(&mut self, id: &BlobId) {
        if let Some(blob) = self.blobs.get_mut(id) {
            blob.pins = blob.pins.saturating_sub(1);
            if blob.pins == 0 && blob.variants.is_empty() {
                self.blobs.remove(id);
            }
        }
    }

    /// Notes that S3 let `principal` read the blob; false if no verified file of it is here.
    pub(super) fn permit(&mut self, id: &BlobId, principal: Principal) -> bool {
        let here = self.blobs.get_mut(id).filter(|blob| blob.variants.iter().any(|u| u.verified));
        let Some(blob) = here else { return false };
        if blob.readers.len() == blob.readers.capacity() {
            blob.readers.retain(|_, at| at.elapsed() < self.proof_lifetime);
        }
        blob.readers.insert(principal, Instant::now());
        true
    }

    /// Notes that S3 let `principal` read the blob and pins it; false if it is not here.
    pub(super) fn admit(&mut self, id: &BlobId, principal: Principal) -> bool {
        self.permit(id, principal) && self.pin(id)
    }

    pub(super) fn known(&self, name: &BlobName) -> Known {
        match self.blobs.get(&name.id) {
            // Only pinned still; its files are gone.
            Some(blob) if blob.variants.is_empty() => Known::Missing,
            Some(blob) if blob.crc != name.crc || blob.is_forged(name) => Known::Differs,
            Some(blob) if blob.variants.iter().any(|used| used.variant == name.variant) => {
                Known::Same
            }
            _ => Known::Missing,
        }
    }

    /// Adds a variant that is not here, just written.
    pub(super) fn add(&mut self, name: BlobName, inode: u64) {
        self.clock += 1;
        self.insert(name, inode, true);
    }

    fn insert(&mut self, name: BlobName, inode: u64, verified: bool) {
        let BlobName { id, size, crc, variant, digest } = name;
        let used = Use { variant, digest, inode, at: self.clock, verified };
        let blob = self.blobs.entry(id).or_insert_with(|| Blob {
            size,
            crc,
            readers: HashMap::new(),
            pins: 0,
            variants: Vec::new(),
        });
        // One that is only pinned still may have had other bytes.
        (blob.size, blob.crc) = (size, crc);
        blob.variants.push(used);
        self.stored += pages(size);
    }

    /// Some file of the blob, and whether it is verified; a verified one if there is.
    pub(super) fn find(&self, id: &BlobId) -> Option<(BlobName, bool)> {
        let blob = self.blobs.get(id)?;
        let used = blob.variants.iter().max_by_key(|used| used.verified)?;
        Some((blob.name(*id, used), used.verified))
    }

    /// The file of a variant, and whether it is verified.
    pub(super) fn file_of(&self, id: &BlobId, variant: Variant) -> Option<(BlobName, bool)> {
        let blob = self.blobs.get(id)?;
        let used = blob.variants.iter().find(|used| used.variant == variant)?;
        Some((blob.name(*id, used), used.verified))
    }

    /// A verified file to make a variant from; one of those who may link the variant anyway, if
    /// there is.
    pub(super) fn base(&self, id: &BlobId, variant: Variant) -> Option<BlobName> {
        let blob = self.blobs.get(id)?;
        let verified = blob.variants.iter().filter(|used| used.verified);
        let used = verified.max_by_key(|used| used.variant.sharers == variant.sharers)?;
        Some(blob.name(*id, used))
    }

    /// The inode number of a variant's file.
    pub(super) fn inode(&self, id: &BlobId, variant: Variant) -> Option<u64> {
        let blob = self.blobs.get(id)?;
        blob.variants.iter().find(|used| used.variant == variant).map(|used| used.inode)
    }

    fn files_of(&self, id: &BlobId) -> Vec<BlobName> {
        let blob = self.blobs.get(id).into_iter();
        blob.flat_map(|blob| blob.variants.iter().map(|used| blob.name(*id, used))).collect()
    }

    /// Whether there is a file of that variant, verified or not.
    pub(super) fn holds(&self, id: &BlobId, variant: Variant) -> bool {
        self.file_of(id, variant).is_some()
    }

    /// A file of an earlier run was read through, by that inode, and is good.
    pub(super) fn note_verified(&mut self, name: &BlobName, inode: u64) {
        self.clock += 1;
        let at = self.clock;
        // One that is verified already was written meanwhile: another file, as good.
        if let Some(used) = self.use_of(&name.id, name.variant).filter(|used| !used.verified) {
            (used.at, used.inode, used.verified) = (at, inode, true);
        }
    }

    pub(super) fn touch(&mut self, id: &BlobId, variant: Variant) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(used) = self.use_of(id, variant) {
            used.at = clock;
        }
    }

    fn use_of(&mut self, id: &BlobId, variant: Variant) -> Option<&mut Use> {
        let blob = self.blobs.get_mut(id)?;
        blob.variants.iter_mut().find(|used| used.variant == variant)
    }

    /// What may be evicted, the least recently used first.
    pub(super) fn candidates(&self) -> Vec<Victim> {
        let unpinned = self.blobs.iter().filter(|(_, blob)| blob.pins == 0);
        let blobs = unpinned.flat_map(|(id, blob)| {
            blob.variants.iter().map(|used| (used.at, Victim::Blob(blob.name(*id, used))))
        });
        let partials = self.partials.idle();
        let partials =
            partials.map(|(at, name, token, bytes)| (at, Victim::Partial { name, token, bytes }));
        let mut uses: Vec<_> = blobs.chain(partials).collect();
        uses.sort_unstable();
        uses.into_iter().map(|(_, victim)| victim).collect()
    }

    /// The sparse file has become the blob: who may read the one may read the other.
    pub(super) fn inherit(&mut self, id: &BlobId) {
        let readers = self.partials.readers(id);
        if let Some(blob) = self.blobs.get_mut(id) {
            for (principal, at) in readers {
                let known = blob.readers.entry(principal).or_insert(at);
                *known = (*known).max(at);
            }
        }
    }

    /// A file to read for those who share with `sharers`, and whether it is verified.
    pub(super) fn readable(
        &self,
        id: &BlobId,
        sharers: Option<Sharers>,
    ) -> Option<(BlobName, bool)> {
        let blob = self.blobs.get(id)?;
        let shared = blob.variants.iter().filter(|used| used.variant.sharers == sharers);
        let used = shared.max_by_key(|used| used.verified)?;
        Some((blob.name(*id, used), used.verified))
    }

    /// Whether nobody holds a lease on the blob.
    pub(super) fn is_idle(&self, id: &BlobId) -> bool {
        self.blobs.get(id).is_some_and(|blob| blob.pins == 0)
    }

    /// Forgets a file; with the last verified one, who may read the blob.
    pub(super) fn remove(&mut self, name: &BlobName) {
        let Some(blob) = self.blobs.get_mut(&name.id) else { return };
        let before = blob.variants.len();
        blob.variants.retain(|used| used.variant != name.variant);
        let removed = (before - blob.variants.len()) as u64;
        if !blob.variants.iter().any(|used| used.verified) {
            blob.readers.clear();
        }
        let gone = blob.variants.is_empty() && blob.pins == 0;
        self.stored -= pages(name.size) * removed;
        if gone {
            self.blobs.remove(&name.id);
        }
    }
}
