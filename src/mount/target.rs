//! Where the kubelet wants a volume, and what may be done there.
//!
//! A target path comes in with a request, and directories on the way to it belong to pods that may
//! be hostile. So the kubelet directory is resolved once, at start, and kept open; a target is
//! reached from there without following any symlink, and then addressed by its open parent and its
//! name. Its name, because a descriptor of the target itself would go on showing what was there
//! before something was mounted or unmounted; its parent, because the path could lead elsewhere at
//! the next call.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::{Failed, MountError};
use super::fuse::{self, FuseDevice};
use super::{bind, kernel, point};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Mode of a target directory, as the kubelet gives it to the directories around it.
const TARGET_MODE: Mode = Mode::from_bits_truncate(0o750);

/// The directory below which the kubelet keeps its pods, open since start.
#[derive(Debug)]
pub struct KubeletDir {
    configured: PathBuf,
    canonical: PathBuf,
    fd: OwnedFd,
}

impl KubeletDir {
    /// Resolves and opens the configured directory. The last time that symlinks count.
    ///
    /// # Errors
    /// `System` naming the directory: `NotFound` if it is missing or no directory.
    pub fn open(configured: &Path) -> Result<Self, MountError> {
        let canonical = configured
            .canonicalize()
            .map_err(|error| Failed::new("resolve the kubelet directory", error).at(configured))?;
        let fd = open(&canonical, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
            .map_err(|errno| Failed::new("open the kubelet directory", errno).at(configured))?;
        Ok(Self { configured: configured.to_owned(), canonical, fd })
    }

    /// The directory without symlinks.
    pub fn path(&self) -> &Path {
        &self.canonical
    }

    /// The target, made with mode 0750 if it is missing, to be published. Its parent must exist.
    ///
    /// # Errors
    /// `Target` (`Invalid`) for a symlink on the way, a target that is no directory, or a parent in a
    /// read-only file system, as the view of a volume is: nothing is mounted into it. `NoParent`;
    /// `System` else.
    pub fn create_target(&self, path: &TargetPath) -> Result<Target, MountError> {
        let target = self.reach(path)?.ok_or_else(|| MountError::NoParent {
            path: path.path.clone(),
            parent: path.parent().to_owned(),
        })?;
        if target.is_in_a_view()? {
            let rule = "must not lie in a read-only file system, such as the view of another \
                        volume; give each volume a directory of its own";
            return Err(path.refused(rule.to_owned()));
        }
        target.create()?;
        Ok(target)
    }

    /// The target if there is something, to be unpublished.
    ///
    /// # Errors
    /// `Target` (`Invalid`) for a symlink on the way; `System` else.
    pub fn existing_target(&self, path: &TargetPath) -> Result<Option<Target>, MountError> {
        let Some(target) = self.reach(path)? else { return Ok(None) };
        match kernel::statx(&target.reach()) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            // Any other failure is met again, with a better name, by what the caller does next.
            _ => Ok(Some(target)),
        }
    }

    /// The place with its parent opened; `None` if the parent is missing. Linux 5.6+.
    fn reach(&self, path: &TargetPath) -> Result<Option<Target>, MountError> {
        let parent = path.below.parent().filter(|parent| !parent.as_os_str().is_empty());
        let how = OpenHow::new()
            .flags(DIRECTORY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(&self.fd, parent.unwrap_or(Path::new(".")), how) {
            Ok(parent) => {
                Ok(Some(Target { parent, name: path.name().to_owned(), path: path.path.clone() }))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(Errno::ELOOP) => Err(path.refused(format!(
                "must not pass through a symlink below {}; replace it by a directory",
                self.canonical.display()
            ))),
            Err(errno) => Err(Failed::new("open the parent directory of", errno).at(&path.path)),
        }
    }
}

/// A path strictly below the kubelet directory, of normal components only.
///
/// Spelled with the resolved kubelet directory, so that one target is one value however the
/// kubelet names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetPath {
    path: PathBuf,
    below: PathBuf,
}

impl TargetPath {
    /// Checks a `target_path` (or `volume_path`) as it came in a request.
    ///
    /// # Errors
    /// `Target` (`Invalid`), naming the value and the remedy.
    pub fn parse(value: &str, kubelet: &KubeletDir) -> Result<Self, MountError> {
        let refused = |rule: String| Err(MountError::Target { path: value.into(), rule });
        let Some(relative) = value.strip_prefix('/') else {
            return refused(format!(
                "must be absolute; give a path below {}",
                kubelet.configured.display()
            ));
        };
        let mut segments = relative.strip_suffix('/').unwrap_or(relative).split('/');
        if segments.any(|it| it.is_empty() || it == "." || it == ".." || it.contains('\0')) {
            return refused("must not have empty, \".\" or \"..\" segments; resolve them".into());
        }
        let path = Path::new(value);
        let below = [&kubelet.configured, &kubelet.canonical]
            .into_iter()
            .find_map(|dir| path.strip_prefix(dir).ok())
            .filter(|below| !below.as_os_str().is_empty());
        match below {
            // Collected from components, which drops a trailing slash.
            Some(below) => {
                let below: PathBuf = below.components().collect();
                Ok(Self { path: kubelet.canonical.join(&below), below })
            }
            None => refused(format!(
                "must lie below {}; give such a path, or set kubeletDir to the kubelet's root \
                 directory",
                kubelet.configured.display()
            )),
        }
    }

    /// The path, without symlinks above the kubelet directory.
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    fn parent(&self) -> &Path {
        self.path.parent().expect("a target lies below the kubelet directory")
    }

    fn name(&self) -> &OsStr {
        self.below.file_name().expect("a target has normal components only, at least one")
    }

    fn refused(&self, rule: String) -> MountError {
        MountError::Target { path: self.path.clone(), rule }
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// A name in an open directory: where a volume is, or will be, mounted.
///
/// Every method means what is there at the moment of the call, and works whether or not something
/// is mounted, a FUSE filesystem without a server included.
#[derive(Debug)]
pub struct Target {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Target {
    /// Mounts `source` here, read-only for everyone and private; see the module's rules.
    ///
    /// # Errors
    /// `System`; nothing is mounted then.
    pub fn bind_read_only(&self, source: &Path) -> Result<(), MountError> {
        let copy = bind::read_only_copy(source)?;
        bind::attach(&copy, &self.reach()).map_err(|failed| failed.at(&self.path))
    }

    /// Mounts a FUSE file system here: read-only for everyone, nosuid, nodev. Nobody serves it yet.
    ///
    /// `max_read` is the most bytes of one read request.
    ///
    /// # Errors
    /// `System`; nothing is mounted then. `NotFound` where there is no `/dev/fuse`.
    pub fn mount_fuse(&self, max_read: u32) -> Result<FuseDevice, MountError> {
        let flags = DIRECTORY | OFlag::O_NOFOLLOW;
        // mount(2) follows symlinks; a descriptor of the directory is none.
        let place = openat(&self.parent, self.name.as_os_str(), flags, Mode::empty())
            .map_err(|errno| Failed::new("open", errno).at(&self.path))?;
        let place = Path::new("/proc/self/fd").join(place.as_raw_fd().to_string());
        fuse::mount_at(&place, max_read)
            .and_then(|fd| fuse::device_at(fd, &self.reach()))
            .map_err(|failed| failed.at(&self.path))
    }

    /// Opens a file below and closes it. Should this process be killed meanwhile, it does not wait for
    /// itself, as long as no other process has the connection.
    ///
    /// # Errors
    /// `System`.
    ///
    /// # Blocking
    /// Until the server of the mount answers.
    pub fn open_and_close(&self, file: &str) -> Result<(), MountError> {
        let file = self.path.join(file);
        fuse::open_and_close(&file).map_err(|error| Failed::new("open", error).at(&file))
    }

    /// Whether anything is mounted here.
    ///
    /// # Errors
    /// `System`.
    pub fn is_mounted(&self) -> Result<bool, MountError> {
        point::is_mounted(&self.reach()).map_err(|failed| failed.at(&self.path))
    }

    /// Unmounts everything here, lazily, whatever is stacked on it.
    ///
    /// # Errors
    /// `System`.
    pub fn unmount_all(&self) -> Result<usize, MountError> {
        point::detach_all(&self.reach()).map_err(|failed| failed.at(&self.path))
    }

    /// Removes the empty directory; one that is gone is fine.
    ///
    /// # Errors
    /// `NotEmpty` naming what lies there; `Target` (`Invalid`) for something that is no directory;
    /// `System` else, among them a mount that is still there.
    pub fn remove(&self) -> Result<(), MountError> {
        match unlinkat(&self.parent, self.name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
                Err(MountError::NotEmpty { path: self.path.clone(), names: self.first_names() })
            }
            Err(Errno::ENOTDIR) => Err(self.not_a_directory()),
            Err(errno) => Err(Failed::new("remove", errno).at(&self.path)),
        }
    }

    /// Every view of ours is read-only, and no directory in which the kubelet works is.
    fn is_in_a_view(&self) -> Result<bool, MountError> {
        let found = fstatvfs(&self.parent);
        let found =
            found.map_err(|errno| Failed::new("inspect the parent of", errno).at(&self.path))?;
        Ok(found.flags().contains(FsFlags::ST_RDONLY))
    }

    fn create(&self) -> Result<(), MountError> {
        let name = self.name.as_os_str();
        match mkdirat(&self.parent, name, TARGET_MODE) {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Failed::new("make the directory", errno).at(&self.path)),
        }
        match openat(&self.parent, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(_) => Ok(()),
            Err(Errno::ENOTDIR | Errno::ELOOP) => Err(self.not_a_directory()),
            Err(errno) => Err(Failed::new("open", errno).at(&self.path)),
        }
    }

    /// The place as a path for calls that take no descriptor: `umount2(2)` is one, and the rest
    /// go the same way. /proc leads to the open parent itself, wherever it has been moved.
    fn reach(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(&self.name)
    }

    fn first_names(&self) -> String {
        const SHOWN: usize = 3;
        let entries = fs::read_dir(self.reach()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .take(SHOWN + 1)
            .map(|entry| format!("{:?}", entry.file_name().to_string_lossy()))
            .collect();
        if names.len() > SHOWN {
            names[SHOWN] = "...".into();
        }
        names.join(", ")
    }

    fn not_a_directory(&self) -> MountError {
        let rule = "must be a directory or missing, but a file or symlink is there; remove it";
        MountError::Target { path: self.path.clone(), rule: rule.into() }
    }
}

#[cfg(test)]
mod tests;
