//! The sparse files in the index: room, readers, pins. Pure data but for the scan.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use super::name::PartialName;
use crate::{source::Principal, store::BlobId};

/// All sparse files, by blob.
#[derive(Debug, Default)]
pub(in crate::store) struct Partials {
    files: HashMap<BlobId, Partial>,
    /// Bytes in files, in whole pages.
    stored: u64,
    /// Bytes that are set aside for blocks on their way.
    coming: u64,
    /// Tells files apart that had one name one after the other.
    tokens: u64,
}

#[derive(Debug)]
struct Partial {
    name: PartialName,
    bytes: u64,
    readers: HashMap<Principal, Instant>,
    pins: usize,
    at: u64,
    token: u64,
}

impl Partials {
    /// Reads the names of all sparse files and asks for their space. What is no whole pair of file
    /// and map, or is a blob already (`is_blob`), is removed.
    pub(in crate::store) fn scan(
        directory: &Path,
        is_blob: impl Fn(&BlobId) -> bool,
    ) -> io::Result<Self> {
        let mut partials = Self::default();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let of_map = file.strip_suffix(".map");
            let is_map = of_map.is_some();
            let name = of_map.unwrap_or(&file).parse::<PartialName>();
            let Ok(name) = name else { continue };
            let has = |name: &str| std::fs::symlink_metadata(directory.join(name)).ok();
            let (data, map) = (has(&name.to_string()), has(&name.map()));
            match (data, map) {
                (Some(data), Some(map))
                    if !is_blob(&name.id) && !partials.has(&name.id) && !is_map =>
                {
                    partials.insert(name, 0);
                    partials.count(&name.id, (data.blocks() + map.blocks()) * 512);
                }
                (Some(_), Some(_)) if is_map && !is_blob(&name.id) => {}
                _ => {
                    if let Err(error) = std::fs::remove_file(entry.path()) {
                        tracing::warn!(file, %error, "failed to remove a leftover of a sparse file");
                    }
                }
            }
        }
        Ok(partials)
    }

    /// Bytes stored and set aside.
    pub(in crate::store) fn used(&self) -> u64 {
        self.stored + self.coming
    }

    /// Bytes that are set aside, and that the file system still shows as free.
    pub(in crate::store) fn outstanding(&self) -> u64 {
        self.coming
    }

    fn insert(&mut self, name: PartialName, at: u64) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        let partial = Partial { name, bytes: 0, readers: HashMap::new(), pins: 0, at, token };
        self.files.insert(name.id, partial);
        token
    }

    /// Pins the file, which is here from now on, at time `at`; says by which name it is here, and
    /// its token.
    pub(in crate::store) fn pin(&mut self, wanted: PartialName, at: u64) -> (PartialName, u64) {
        if !self.files.contains_key(&wanted.id) {
            self.insert(wanted, at);
        }
        let partial = self.files.get_mut(&wanted.id).expect("it was just made");
        (partial.pins, partial.at) = (partial.pins + 1, at);
        (partial.name, partial.token)
    }

    pub(in crate::store) fn unpin(&mut self, id: &BlobId, token: u64) {
        if let Some(partial) = self.mine(id, token) {
            partial.pins = partial.pins.saturating_sub(1);
        }
    }

    fn mine(&mut self, id: &BlobId, token: u64) -> Option<&mut Partial> {
        self.files.get_mut(id).filter(|partial| partial.token == token)
    }

    pub(in crate::store) fn has(&self, id: &BlobId) -> bool {
        self.files.contains_key(id)
    }

    pub(in crate::store) fn reserve(&mut self, bytes: u64) {
        self.coming += bytes;
    }

    pub(in crate::store) fn release(&mut self, bytes: u64) {
        self.coming = self.coming.saturating_sub(bytes);
    }

    /// So many bytes that were set aside are in the file now.
    pub(in crate::store) fn land(&mut self, id: &BlobId, token: u64, bytes: u64) {
        self.release(bytes);
        if self.mine(id, token).is_some() {
            self.count(id, bytes);
        }
    }

    fn count(&mut self, id: &BlobId, bytes: u64) {
        if let Some(partial) = self.files.get_mut(id) {
            partial.bytes += bytes;
            self.stored += bytes;
        }
    }

    /// Forgets the file; whether it was that one.
    pub(in crate::store) fn remove(&mut self, id: &BlobId, token: u64) -> bool {
        if self.mine(id, token).is_none() {
            return false;
        }
        let bytes = self.files.remove(id).map_or(0, |partial| partial.bytes);
        self.stored -= bytes;
        true
    }

    /// Notes that S3 let `principal` read the object version.
    pub(in crate::store) fn permit(
        &mut self,
        id: &BlobId,
        principal: Principal,
        lifetime: Duration,
    ) {
        let Some(partial) = self.files.get_mut(id) else { return };
        if partial.readers.len() == partial.readers.capacity() {
            partial.readers.retain(|_, at| at.elapsed() < lifetime);
        }
        partial.readers.insert(principal, Instant::now());
    }

    /// Whether S3 said so not too long ago.
    pub(in crate::store) fn is_permitted(
        &self,
        id: &BlobId,
        principal: Principal,
        lifetime: Duration,
    ) -> bool {
        let proof = self.files.get(id).and_then(|partial| partial.readers.get(&principal));
        proof.is_some_and(|at| at.elapsed() < lifetime)
    }

    /// Whom S3 let read it, for the blob that it has become.
    pub(in crate::store) fn readers(&self, id: &BlobId) -> Vec<(Principal, Instant)> {
        let readers = self.files.get(id).into_iter().flat_map(|partial| &partial.readers);
        readers.map(|(principal, at)| (*principal, *at)).collect()
    }

    /// What may be evicted, with the time of its last use, its name, token and bytes.
    pub(in crate::store) fn idle(&self) -> impl Iterator<Item = (u64, PartialName, u64, u64)> + '_ {
        let idle = self.files.values().filter(|partial| partial.pins == 0);
        idle.map(|partial| (partial.at, partial.name, partial.token, partial.bytes))
    }

    pub(in crate::store) fn is_idle(&self, id: &BlobId, token: u64) -> bool {
        self.files.get(id).is_some_and(|partial| partial.token == token && partial.pins == 0)
    }
}
