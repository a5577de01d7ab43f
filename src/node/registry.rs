//! What is published: one small file for each target path, without secrets.
//!
//! ```text
//! <state>/memory/registry/<key>.jsonl      one JSON object a line; the last readable one counts
//! ```
//!
//! It lies on the memory store's tmpfs, because it has to live exactly as long as the mounts that
//! it describes: through every crash and upgrade of the process, and not through a reboot.
//!
//! A record is appended, and begins with a line break: one that a crash tore stays alone on its
//! line. A file that has grown is written anew under another name and renamed. A file without a
//! readable line is dropped. A record is written before
//! a publish has its first effect and the file removed after an unpublish had its last, so whatever
//! exists on the node is either in an entry or garbage.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{NodeError, quota::Share};
use crate::{
    source::SealedPrincipal,
    store::Medium,
    volume::{Layout, Ownership, PublishArguments, ViewKind},
};

/// The version of the files; others are not read.
const FORMAT: u32 = 2;

/// The size in bytes from which a file is written anew with one record: a volume that is refreshed
/// every second must not fill the tmpfs. With one more record it is a page.
const LARGE: u64 = 3 << 10;

/// Names a target path in our directories: a digest, so that any path is a good file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct VolumeKey(String);

impl VolumeKey {
    /// The key of a target path.
    pub(super) fn of(target: &Path) -> Self {
        let digest = Sha256::digest(target.as_os_str().as_encoded_bytes());
        Self(hex::encode(&digest[..16]))
    }

    /// The key that a file name is, if it is one.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let good = name.len() == 32 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(name.to_owned()))
    }

    /// The key as a file name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a volume stands between its first effect and its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Work has begun; the target is not mounted, or was an instant ago.
    Publishing,
    /// The target is mounted.
    Published,
    /// Everything is being removed.
    Unpublishing,
}

/// How a volume's files stand, which does not change while it is published, whatever the configured
/// defaults become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) layout: Layout,
    pub(super) ownership: Ownership,
    /// Whether a `fuse` view answers for extended attributes.
    #[serde(default)]
    pub(super) xattrs: bool,
}

/// What a volume shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of the revision; counts up.
    pub revision: u64,
    /// Files.
    pub objects: u64,
    /// Directories below the top.
    pub directories: u64,
    /// The sum of the files' sizes.
    pub bytes: u64,
    /// What that counts for its namespace.
    pub(super) share: Share,
    /// `maxSize` in bytes, where there is one.
    pub max_bytes: Option<u64>,
    /// `maxObjects`.
    pub max_objects: u64,
    /// The keys that could not be shown, for people; empty when there are none.
    pub skipped: String,
    /// When S3 last said that this is so: seconds since the epoch; zero if that is not known.
    pub resolved_at: u64,
}

/// One published volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    format: u32,
    /// The target path as requested.
    pub(super) target: PathBuf,
    /// What was asked for.
    pub(super) arguments: PublishArguments,
    /// How far it came.
    pub(super) phase: Phase,
    /// Which view.
    pub(super) view: ViewKind,
    /// Where its files are.
    pub(super) medium: Medium,
    /// How it stands; `None` if the record was lost.
    pub(super) shape: Option<Shape>,
    /// The namespace that it counts for; `None` if nothing vouched for one.
    pub(super) namespace: Option<String>,
    /// Who was allowed to read all that it shows.
    pub(super) principal: Option<SealedPrincipal>,
    /// Whether it shows what S3 had before, because S3 could not be reached.
    pub(super) is_fallback: bool,
    /// What it shows; meaningful once published.
    pub(super) summary: Summary,
}

impl Entry {
    /// A new volume's entry, about to be published.
    pub(super) fn publishing(
        target: PathBuf,
        arguments: PublishArguments,
        view: ViewKind,
        medium: Medium,
    ) -> Self {
        let (phase, summary) = (Phase::Publishing, Summary::default());
        Self {
            format: FORMAT,
            target,
            arguments,
            phase,
            view,
            medium,
            shape: None,
            namespace: None,
            principal: None,
            is_fallback: false,
            summary,
        }
    }

    /// The same volume, with how its files stand.
    pub(super) fn shaped(self, shape: Shape) -> Self {
        Self { shape: Some(shape), ..self }
    }

    /// The same volume, counted for a namespace.
    pub(super) fn counted_for(self, namespace: Option<String>) -> Self {
        Self { namespace, ..self }
    }

    /// The same volume, further or back.
    pub(super) fn in_phase(self, phase: Phase) -> Self {
        Self { phase, ..self }
    }

    /// The same volume, with what it shows and for whom.
    pub(super) fn showing(self, summary: Summary, principal: SealedPrincipal) -> Self {
        Self { summary, principal: Some(principal), ..self }
    }

    /// Whether it says all that its view needs: a mount that is served is never adopted without a
    /// record.
    fn is_whole(&self) -> bool {
        self.view != ViewKind::Fuse || self.shape.is_some()
    }

    /// The key of the entry's target path.
    pub(super) fn key(&self) -> VolumeKey {
        VolumeKey::of(&self.target)
    }
}

/// The directory of entries. All functions block.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// Opens the registry, making its directory if need be.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Reads all entries; drops files that are none, and temporary files.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn load(&self) -> io::Result<HashMap<VolumeKey, Entry>> {
        let mut entries = HashMap::new();
        for file in std::fs::read_dir(&self.directory)? {
            let path = file?.path();
            match read(&path) {
                Some(entry) if self.path(&entry.key()) == path => {
                    entries.insert(entry.key(), entry);
                }
                _ => {
                    tracing::warn!(path = %path.display(), "dropping an unreadable registry file");
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!(path = %path.display(), %error, "failed to drop it");
                    }
                }
            }
        }
        Ok(entries)
    }

    /// Records an entry; from now on it counts instead of earlier ones.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn write(&self, entry: &Entry) -> Result<(), NodeError> {
        let write = || -> io::Result<()> {
            let mut record = b"\n".to_vec();
            serde_json::to_writer(&mut record, entry)?;
            record.push(b'\n');
            let path = self.path(&entry.key());
            let mut options = File::options();
            options.create(true).append(true).mode(0o600);
            let mut file = options.open(&path)?;
            if file.metadata()?.len() < LARGE {
                return file.write_all(&record);
            }
            let anew = path.with_extension("new");
            options.append(false).write(true).truncate(true).open(&anew)?.write_all(&record)?;
            std::fs::rename(anew, path)
        };
        write().map_err(|error| NodeError::Registry { action: "write", error: Arc::new(error) })
    }

    /// Removes an entry; a missing one is fine.
    ///
    /// # Errors
    /// What the file system answers.
    pub(super) fn remove(&self, key: &VolumeKey) -> Result<(), NodeError> {
        match std::fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NodeError::Registry { action: "remove", error: Arc::new(error) })
            }
            _ => Ok(()),
        }
    }

    fn path(&self, key: &VolumeKey) -> PathBuf {
        self.directory.join(format!("{key}.jsonl"))
    }
}

/// The last readable record of this format.
fn read(path: &Path) -> Option<Entry> {
    let text = std::fs::read(path).ok()?;
    text.rsplit(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
        .find(|entry| entry.format == FORMAT && entry.is_whole())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        let arguments = PublishArguments::new("v".into(), &BTreeMap::new(), None);
        Entry::publishing("/pods/1/mount".into(), arguments, ViewKind::Tmpfs, Medium::Memory)
    }

    #[test]
    fn the_last_record_counts() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path().join("r")).unwrap();
        registry.write(&entry()).unwrap();
        registry.write(&entry().in_phase(Phase::Published)).unwrap();
        assert_eq!(registry.load().unwrap()[&entry().key()].phase, Phase::Published);
        registry.remove(&entry().key()).unwrap();
        assert!(registry.load().unwrap().is_empty());
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path().to_owned()).unwrap();
        registry.write(&entry()).unwrap();
        let mut file = File::options().append(true).open(registry.path(&entry().key())).unwrap();
        file.write_all(b"\n{\"format\":1,\"target").unwrap();
        assert_eq!(registry.load().unwrap()[&entry().key()], entry());
        registry.write(&entry().in_phase(Phase::Unpublishing)).unwrap();
        assert_eq!(registry.load().unwrap()[&entry().key()].phase, Phase::Unpublishing);
    }

    #[test]
    fn a_file_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path().to_owned()).unwrap();
        for revision in 1..=1000 {
            let summary = Summary { revision, ..Summary::default() };
            registry.write(&Entry { summary, ..entry() }).unwrap();
        }
        assert_eq!(registry.load().unwrap()[&entry().key()].summary.revision, 1000);
        let length = std::fs::metadata(registry.path(&entry().key())).unwrap().len();
        assert!(length <= 2 * LARGE, "{length} bytes");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_entry_is_dropped_and_a_stranger_is_no_reason_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path().to_owned()).unwrap();
        std::fs::write(registry.path(&entry().key()), "{ torn").unwrap();
        std::fs::create_dir(directory.path().join("lost+found")).unwrap();
        assert!(registry.load().unwrap().is_empty());
        assert!(!registry.path(&entry().key()).exists());
    }

    proptest! {
        /// Whatever stands in a file: it is an entry under its own name, or it is dropped.
        #[test]
        fn no_file_is_more_than_an_entry(
            target in "[a./\\\\\0]{0,12}",
            noise in proptest::collection::vec(any::<u8>(), 0..60),
            cut in any::<prop::sample::Index>(),
            is_torn in any::<bool>(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let registry = Registry::open(directory.path().to_owned()).unwrap();
            let path = registry.path(&entry().key());
            let target = serde_json::to_string(&target).unwrap();
            let good = serde_json::to_string(&entry()).unwrap();
            let mut text = good.replace("\"/pods/1/mount\"", &target).into_bytes();
            if is_torn {
                text.truncate(cut.index(text.len()));
                text.extend(noise);
            }
            std::fs::write(&path, text).unwrap();
            for (key, found) in registry.load().unwrap() {
                prop_assert_eq!(&key, &found.key());
                prop_assert_eq!(registry.path(&key), path.clone());
            }
            prop_assert_eq!(path.exists(), !registry.load().unwrap().is_empty());
        }
    }
}
