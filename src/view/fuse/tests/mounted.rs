//! A volume that is really mounted, in a mount namespace of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::runtime::Runtime;

use super::{
    super::{AskToOpen, FuseMount, FuseOptions, LedgerPlace},
    OWNERSHIP, listing,
    memory::Memory,
};
use crate::mount::{KubeletDir, Target, TargetPath, scratch::in_private_namespace};

pub(super) const OPTIONS: FuseOptions = FuseOptions {
    ownership: OWNERSHIP,
    xattrs: false,
    passthrough: false,
    ask_to_open: AskToOpen::Always,
    resend: true,
};

/// As on a kernel that cannot send again what was not answered.
pub(super) const REPLAYED: FuseOptions = FuseOptions { resend: false, ..OPTIONS };

/// The kernel opens files by itself.
pub(super) const UNASKED: FuseOptions = FuseOptions { ask_to_open: AskToOpen::Never, ..OPTIONS };

/// A path and its content, which is its `ETag` as well if it is short.
pub(super) type File = (String, Bytes);

pub(super) struct Mounted {
    pub(super) path: PathBuf,
    pub(super) content: Arc<Memory>,
    pub(super) mount: FuseMount,
    pub(super) target: Target,
    pub(super) runtime: Runtime,
}

pub(super) fn file(path: &str, content: impl Into<Bytes>) -> File {
    (path.to_owned(), content.into())
}

impl Mounted {
    fn new(dir: &Path, files: &[File], options: FuseOptions) -> Self {
        let kubelet = KubeletDir::open(dir).unwrap();
        let path = dir.join("target");
        let target = TargetPath::parse(path.to_str().unwrap(), &kubelet).unwrap();
        let target = kubelet.create_target(&target).unwrap();
        let runtime = Runtime::new().unwrap();
        let content = Arc::new(Memory::new(options.passthrough));
        let listing = listed(&content, files);
        let entered = runtime.enter();
        let memory: Arc<Memory> = Arc::clone(&content);
        let ledger = LedgerPlace::within(&dir.join("ledger"));
        let mount = FuseMount::new(&target, &listing, options, memory, &ledger).unwrap();
        drop(entered);
        Self { path, content, mount, target, runtime }
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// Shows other files.
    pub(super) fn show(&self, files: &[File]) {
        self.mount.show(&listed(&self.content, files)).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> Bytes {
        fs::read(self.at(path)).unwrap().into()
    }

    /// Unmounts, and ends the session in time.
    pub(super) fn close(self, grace: Duration) {
        self.target.unmount_all().unwrap();
        assert!(self.runtime.block_on(self.mount.close(grace)), "the session hangs");
    }
}

fn listed(content: &Memory, files: &[File]) -> crate::listing::Listing {
    let etags: Vec<_> = files.iter().map(|(path, bytes)| etag(path, bytes)).collect();
    for ((_, bytes), etag) in files.iter().zip(&etags) {
        content.put(etag, bytes.clone());
    }
    let described: Vec<_> = files
        .iter()
        .zip(&etags)
        .map(|((path, bytes), etag)| (path.as_str(), etag.as_str(), bytes.len() as u64))
        .collect();
    listing(&described)
}

fn etag(path: &str, bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest([path.as_bytes(), bytes].concat())[..16])
}

/// Runs a test on a mounted volume; skips loudly where the machine does not permit it.
pub(super) fn with_mount(files: &[File], options: FuseOptions, test: impl FnOnce(Mounted) + Send) {
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("SKIPPED: FUSE tests need root or an accessible /dev/fuse");
        return;
    }
    in_private_namespace(|dir| test(Mounted::new(dir, files, options)));
}

/// The usual: the volume is closed at the end.
pub(super) fn mounted(files: &[File], options: FuseOptions, test: impl FnOnce(&Mounted) + Send) {
    with_mount(files, options, |mounted| {
        test(&mounted);
        mounted.close(Duration::from_secs(10));
    });
}
