//! What S3 let a volume's principal read, for as long as the volume is published.
//!
//! ```text
//! <volume's directory>/proofs, once something was read
//!     line        the principal, sealed
//!     32 bytes    the name of each object version that it read; of the first 32,768
//! ```
//!
//! It spares requests after a restart, and nothing depends on it: a file that cannot be read or
//! written proves nothing, and S3 is asked again.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    source::{Principal, SealedPrincipal},
    store::BlobId,
};

const NAME: &str = "proofs";
const LENGTH: usize = 32;

/// The file lies in memory: a mebibyte is enough.
const MOST: usize = 32 << 10;

/// The proofs of one principal in one volume.
#[derive(Debug)]
pub(super) struct Proofs {
    path: PathBuf,
    sealed: Option<String>,
    known: HashSet<[u8; LENGTH]>,
    /// Who reads; `None` after a restart, until they are there again. Nothing counts before.
    principal: Option<Principal>,
    file: Kept,
}

/// The file that proofs go to.
#[derive(Debug)]
enum Kept {
    /// It does not say what is known, nor for whom.
    Outdated,
    /// Open for more.
    Open(File),
    /// It could not be written, or holds as much as it may.
    Closed,
}

impl Proofs {
    /// What an earlier process knew. It counts once its principal is there again.
    ///
    /// # Blocking
    /// Reads the file.
    pub(super) fn open(directory: &Path) -> Self {
        let path = directory.join(NAME);
        // A crash may have left what was to take its place; mostly there is none.
        drop(std::fs::remove_file(path.with_extension("new")));
        let (sealed, known) = std::fs::read(&path).ok().and_then(|it| parse(&it)).unzip();
        Self {
            path,
            sealed,
            known: known.unwrap_or_default(),
            principal: None,
            file: Kept::Outdated,
        }
    }

    /// Keeps what was proven for this principal, and forgets what was for another one.
    ///
    /// # Blocking
    /// Removes a file, if another principal's is there.
    pub(super) fn belong_to(&mut self, principal: Principal, sealed: &SealedPrincipal) {
        let is_same = self.sealed.as_deref() == Some(sealed.as_str());
        if is_same && self.principal == Some(principal) {
            return;
        }
        self.principal = Some(principal);
        if is_same {
            return;
        }
        self.known.clear();
        if self.sealed.replace(sealed.as_str().to_owned()).is_some() {
            drop(std::fs::remove_file(&self.path));
        }
        self.file = Kept::Outdated;
    }

    /// The file with what is known, open for more.
    fn written(&self) -> io::Result<File> {
        let anew = self.path.with_extension("new");
        let mut options = File::options();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&anew)?;
        let mut content = self.sealed.clone().unwrap_or_default().into_bytes();
        content.push(b'\n');
        content.extend(self.known.iter().take(MOST).flatten());
        file.write_all(&content)?;
        std::fs::rename(anew, &self.path)?;
        Ok(file)
    }

    /// Whether the principal read this object version.
    pub(super) fn has(&self, id: &BlobId) -> bool {
        self.principal.is_some() && self.known.contains(id.as_bytes())
    }

    /// Notes that S3 let `principal` read it: of no use if others read by now.
    ///
    /// # Blocking
    /// One write(2) the first time; with the very first of all, it makes the file.
    pub(super) fn note(&mut self, id: &BlobId, principal: Option<Principal>) {
        if principal.is_none() || principal != self.principal || !self.known.insert(*id.as_bytes())
        {
            return;
        }
        let kept = match &mut self.file {
            Kept::Open(file) if self.known.len() <= MOST => file.write_all(id.as_bytes()),
            Kept::Outdated => self.written().map(|file| self.file = Kept::Open(file)),
            Kept::Open(_) | Kept::Closed => return self.file = Kept::Closed,
        };
        if let Err(error) = kept {
            tracing::debug!(%error, "what is proven is not kept over a restart");
            self.file = Kept::Closed;
        }
    }
}

/// The principal and the names; a last one that a crash cut off is left out.
fn parse(content: &[u8]) -> Option<(String, HashSet<[u8; LENGTH]>)> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let principal = std::str::from_utf8(&content[..end]).ok()?;
    let (names, _) = content[end + 1..].as_chunks::<LENGTH>();
    Some((principal.to_owned(), names.iter().copied().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::{Bucket, ETag, EndpointId, Key, ObjectVersion},
        source::NodeKey,
    };

    fn endpoint() -> EndpointId {
        EndpointId::new("http://s3", None)
    }

    fn id(number: usize) -> BlobId {
        BlobId::of(&ObjectVersion {
            endpoint: endpoint(),
            bucket: Bucket::parse("bucket").unwrap(),
            key: Key::parse(&number.to_string()).unwrap(),
            etag: ETag::new("1"),
            size: 1,
            sse_key: None,
        })
    }

    /// What a process has of a principal, and the principal.
    fn of(directory: &Path, name: &str) -> (Proofs, Principal) {
        let mut proofs = Proofs::open(directory);
        let principal = Principal::credential(&endpoint(), name, "secret", None);
        proofs.belong_to(principal, &NodeKey::new([1; 32]).seal(principal, name));
        (proofs, principal)
    }

    #[test]
    fn the_next_process_knows_what_the_principal_read_and_no_other_does() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..3 {
            let (mut proofs, team) = of(directory.path(), "team");
            assert!((0..3).all(|known| proofs.has(&id(known)) == (known < number)));
            proofs.note(&id(number), Some(team));
        }
        let (mut proofs, _) = of(directory.path(), "other");
        assert!((0..3).all(|known| !proofs.has(&id(known))));
        // Theirs is not there any more, and what they read late proves nothing.
        let (_, team) = of(tempfile::tempdir().unwrap().path(), "team");
        proofs.note(&id(0), Some(team));
        assert!(!proofs.has(&id(0)));
        assert!(!of(directory.path(), "team").0.has(&id(0)));
    }

    #[test]
    fn the_file_holds_so_many_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let (mut proofs, team) = of(directory.path(), "team");
        let all = MOST + 10;
        (0..all).for_each(|number| proofs.note(&id(number), Some(team)));
        assert!((0..all).all(|number| proofs.has(&id(number))), "this process knows all");
        let (mut next, _) = of(directory.path(), "team");
        assert_eq!((0..all).filter(|number| next.has(&id(*number))).count(), MOST);
        // Written anew, it is no longer either.
        next.note(&id(all), Some(team));
        assert_eq!(of(directory.path(), "team").0.known.len(), MOST);
    }
}
