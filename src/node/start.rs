//! Start-up: the state directory, the stores, and what an earlier process left.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use parking_lot::RwLock;
use thiserror::Error;

use super::{
    Context, Node, NodeError,
    published::Published,
    records::{self, Records},
    recover::{self, Action, Found},
    refresh::Refresher,
    registry::{Entry, Phase, Registry, VolumeKey},
    volumes::Volumes,
};
use crate::{
    config::Config,
    fetch::Fetcher,
    keeper::{Custodian, Kept},
    mount::{self, KubeletDir, MountError, SwapPolicy, TargetPath, TmpfsOptions},
    problems::Problems,
    source::s3::S3Clients,
    store::{Medium, PAGE, Store, StoreError, Stores},
    task::Tasks,
    telemetry::metrics::Metrics,
    units::ByteSize,
    view::linkfarm::{self, LinkFarm},
    volume::{ViewKind, check_defaults},
};

/// Held by the process that uses the state directory.
const LOCK: &str = "lock";

/// Memory that the plugin needs beside its store, under the container's limit.
const BESIDE_STORE: u64 = 192 << 20;

/// How long the start waits for a keeper that is there to answer. Most of that, a plugin that is
/// about to end holds the lease.
const KEEPER: Duration = Duration::from_secs(10);

/// Why the node plugin cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration asks for what is not there.
    #[error("{0}")]
    Config(#[from] Problems),
    /// A directory cannot be used.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Another process uses the state directory.
    #[error("another node plugin uses the state directory {}", .0.display())]
    Locked(PathBuf),
    /// The state directory holds what is none of ours.
    #[error(
        "--state-dir: {} holds {name:?}, which is none of s3view's; give a directory of its own: its \
         mode becomes 0700",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What lies in it.
        name: String,
    },
    /// A mount or the kubelet directory failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The lock on the state directory; released by the kernel when the process ends, however it does.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: Flock<File>,
}

impl Node {
    /// Opens the stores and the registry below `state` and takes over what is published.
    ///
    /// # Errors
    /// See [`StartError`].
    ///
    /// # Blocking
    /// System calls and one scan of each store's names.
    pub fn start(config: Config, state: &Path, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        check(&config).into_result(())?;
        create_private(state)?;
        check_own(state, &config.store.disk.path)?;
        // Made by the kubelet as a hostPath, it is open to all.
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(state, private).map_err(io_error("set the mode of", state))?;
        let lock = lock(state)?;
        let kubelet = KubeletDir::open(&config.kubelet_dir)?;
        mount::check_propagation(&[kubelet.path(), state])?;
        let memory = state.join("memory");
        create_private(&memory)?;
        let tmpfs = mount::mount_or_adopt(&memory, &tmpfs_options(&config))?;
        let disk = &config.store.disk;
        create_private(&disk.path)?;
        if let Err(error) = mount::label_directory(&disk.path) {
            // In memory, volumes can be shown all the same.
            tracing::warn!(%error, "containers may not be allowed to read disk volumes");
        }
        let stores = Stores::new(
            Store::open(Medium::Memory, &memory, config.store.memory.size, &metrics)?,
            Store::open(Medium::Disk, &disk.path, disk.size, &metrics)?,
        );
        for store in stores.iter() {
            store.set_proof_lifetime(config.authorization.lifetime);
        }
        let node_key = records::node_key(state).map_err(io_error("make the key in", state))?;
        let records = Records::new(node_key.clone(), config.authorization.cached_for);
        for store in stores.iter() {
            records.sweep(&store.records(), u64::MAX);
        }
        let registry = memory.join("registry");
        let registry = Registry::open(registry.clone()).map_err(io_error("open", &registry))?;
        let clients = S3Clients::new(&config, Arc::clone(&metrics))?;
        let socket = &config.keeper.socket;
        let custodian = Custodian::start(socket.clone()).map_err(io_error("watch", socket))?;
        let node = Self(Arc::new(Context {
            fetcher: Fetcher::new(&config.fetch),
            no_swap: tmpfs.no_swap,
            records,
            node_key,
            custodian,
            volumes: Volumes::default(),
            refresher: Refresher::default(),
            tasks: Tasks::default(),
            config: RwLock::new(Arc::new(config)),
            kubelet,
            stores,
            clients,
            _lock: lock,
            registry,
            metrics,
        }));
        node.recover(state)?;
        Ok(node)
    }

    fn recover(&self, state: &Path) -> Result<(), StartError> {
        let entries = self.0.registry.load().map_err(io_error("read the registry in", state))?;
        let found = Found {
            entries: entries.iter().map(|(key, e)| (key.clone(), self.state_of(e))).collect(),
            directories: self.directories()?,
            shown: shown()?,
        };
        let mut kept = self.kept();
        for action in recover::plan(&found) {
            // One volume that cannot be cleaned up must not keep all others from working.
            if let Err(error) = self.carry_out(&action, &entries, &mut kept) {
                tracing::error!(?action, %error, "failed to recover a volume; it is left as it is");
            }
        }
        for key in kept.keys() {
            tracing::warn!(%key, "letting go of a FUSE mount that no volume has");
            self.0.release(key);
        }
        self.0.count_volumes();
        Ok(())
    }

    /// What an earlier process left with the keeper.
    fn kept(&self) -> HashMap<VolumeKey, Kept> {
        let found = self.0.custodian.found(KEEPER).into_iter();
        found
            .filter_map(|kept| Some((VolumeKey::from_name(&kept.name.to_string())?, kept)))
            .collect()
    }

    fn carry_out(
        &self,
        action: &Action,
        entries: &HashMap<VolumeKey, Entry>,
        kept: &mut HashMap<VolumeKey, Kept>,
    ) -> Result<(), NodeError> {
        match action {
            Action::Keep(key) => {
                let entry = entries[key].clone().in_phase(Phase::Published);
                tracing::info!(target_path = %entry.target.display(), "found a published volume");
                if entry.view == ViewKind::Fuse {
                    let fused = self.0.resume(&entry, kept.remove(key));
                    let published = Published::found(entry, Vec::new());
                    self.0.volumes.adopt(key.clone(), published.served_as(Some(fused)));
                    return Ok(());
                }
                // What a crash left half replaced is finished or undone; older revisions stay for
                // their time.
                let retired = LinkFarm::tidy(&self.0.directory(entry.medium, key));
                let retired = retired.unwrap_or_else(|error| {
                    tracing::warn!(%error, "failed to tidy a volume that was found");
                    Vec::new()
                });
                self.0.volumes.adopt(key.clone(), Published::found(entry, retired));
                Ok(())
            }
            Action::Leave(key) => {
                let target = entries[key].target.display();
                tracing::warn!(target_path = %target, "a volume that cannot be reached is left");
                // The keeper goes on to hold its mount.
                kept.remove(key);
                Ok(())
            }
            Action::Discard(key) => {
                let entry = &entries[key];
                tracing::info!(target_path = %entry.target.display(), "removing what is left");
                match self.target(entry) {
                    Some(path) => self.take_away(key, &path, None),
                    None => self.0.remove_files(key),
                }
            }
            Action::RemoveDirectory(medium, key) => {
                Ok(linkfarm::remove_all(&self.0.directory(*medium, key))?)
            }
        }
    }

    fn state_of(&self, entry: &Entry) -> (Phase, Option<bool>) {
        let mounted = self.target(entry).and_then(|path| self.0.is_mounted(&path).ok());
        (entry.phase, mounted)
    }

    /// The entry's target, if it lies below the kubelet directory as configured now.
    fn target(&self, entry: &Entry) -> Option<TargetPath> {
        TargetPath::parse(entry.target.to_str()?, &self.0.kubelet).ok()
    }

    fn directories(&self) -> Result<HashSet<(Medium, VolumeKey)>, StartError> {
        let mut directories = HashSet::new();
        for store in self.0.stores.iter() {
            let path = store.volumes();
            let entries = std::fs::read_dir(&path).map_err(io_error("read", &path))?;
            for entry in entries {
                let name = entry.map_err(io_error("read", &path))?.file_name();
                let key = name.to_str().and_then(VolumeKey::from_name);
                directories.extend(key.map(|key| (store.medium(), key)));
            }
        }
        Ok(directories)
    }
}

/// The volumes whose directory is mounted somewhere: the root of such a mount, within its file
/// system, ends in `volumes/<key>/root`.
fn shown() -> Result<HashSet<VolumeKey>, StartError> {
    let mounts = mount::table::mounts()?;
    let key = |entry: &mount::table::Entry| {
        let volume = entry.root.parent().filter(|_| entry.root.ends_with("root"))?;
        let name = volume.file_name()?.to_str()?;
        VolumeKey::from_name(name)
            .filter(|_| volume.parent().is_some_and(|p| p.ends_with("volumes")))
    };
    Ok(mounts.iter().filter_map(key).collect())
}

/// Refuses a directory that was in use before it became ours: others may need it as it is. Without
/// our lock, there may be what leads to the disk store (a disk of its own), and a socket.
fn check_own(state: &Path, disk: &Path) -> Result<(), StartError> {
    if state.join(LOCK).exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(state).map_err(io_error("read", state))? {
        let entry = entry.map_err(io_error("read", state))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if !is_socket && name != "lost+found" && !disk.starts_with(entry.path()) {
            return Err(StartError::Foreign { path: state.to_owned(), name });
        }
    }
    Ok(())
}

fn lock(state: &Path) -> Result<StateLock, StartError> {
    let path = state.join(LOCK);
    let file = File::create(&path).map_err(io_error("create", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(StateLock { _file: file }),
        Err(_) => Err(StartError::Locked(state.to_owned())),
    }
}

/// What is wrong with a configuration on this machine, beyond what its text tells: names of
/// attributes, CA bundles, the kubelet's directory, and the memory that the container has.
///
/// # Blocking
/// Reads files.
pub fn check(config: &Config) -> Problems {
    let mut problems = Problems::default();
    if let Err(found) = check_defaults(&config.defaults) {
        problems.extend(found);
    }
    if let Err(found) = S3Clients::new(config, Arc::default()) {
        problems.extend(found);
    }
    if !config.kubelet_dir.is_dir() {
        let text =
            format!("{} must be the kubelet's directory, and exist", config.kubelet_dir.display());
        problems.add("kubeletDir", text);
    }
    let size = config.store.memory.size;
    if let Some(limit) = mount::memory_limit()
        && size.bytes() > limit.saturating_sub(BESIDE_STORE)
    {
        let limit = ByteSize::from_bytes(limit);
        let text = format!(
            "{size} does not fit: the memory limit of this container is {limit}, and must be at \
             least 192Mi above the size"
        );
        problems.add("store.memory.size", text);
    }
    problems
}

/// Room on the memory store's tmpfs for what must survive the process: the registry, with a page for
/// each of four thousand volumes, and the ledgers of `fuse` volumes, with 8 for each of a thousand.
const RECORDS: u64 = (16 + 32) << 20;

/// Hard links, directories and symlinks count as inodes on a tmpfs: room for a blob on every page,
/// and for two volumes that show as much as one may.
fn tmpfs_options(config: &Config) -> TmpfsOptions {
    let size = config.store.memory.size.bytes();
    // The kernel wants the number in a machine word, with room to count.
    let names = config.limits.max_objects.tmpfs.saturating_mul(4).min(1 << 40);
    // Whether the node swaps is asked at each publish: it is no reason not to start.
    let swap = SwapPolicy::Allow;
    TmpfsOptions {
        size_bytes: size.saturating_add(RECORDS),
        inodes: (size / PAGE).saturating_add(names),
        swap,
    }
}

fn create_private(path: &Path) -> Result<(), StartError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(io_error("create", path))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StartError {
    move |error| StartError::Io { action, path: path.to_owned(), error }
}
