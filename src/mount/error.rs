//! What can go wrong with a mount, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::failure::FailureKind;

/// Why a mount operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel refused.
    #[error("failed to {operation} {path:?}{}", hint(.source))]
    System {
        /// What was tried, in words that read before a path.
        operation: &'static str,
        /// Where it was tried.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A target path that is never acceptable, or that is occupied by something else.
    #[error("target_path {path:?} {rule}")]
    Target {
        /// The path as given.
        path: PathBuf,
        /// The rule it breaks and the remedy.
        rule: String,
    },
    /// The directory in which the target would be made is missing.
    #[error(
        "target_path {path:?} has no parent directory: {parent:?} does not exist; the kubelet \
         makes it before it publishes"
    )]
    NoParent {
        /// The target.
        path: PathBuf,
        /// The missing directory.
        parent: PathBuf,
    },
    /// A directory that should be empty is not, so removing it would lose data.
    #[error("failed to remove {path:?}: it is not empty but holds {names}; move that away")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// The first names in it.
        names: String,
    },
    /// The place of the store's tmpfs is taken by another filesystem.
    #[error(
        "{path:?} is a mount point, but not of a tmpfs; unmount it or move the state directory"
    )]
    NotTmpfs {
        /// The mount point.
        path: PathBuf,
    },
    /// The store's tmpfs cannot shrink to what is configured.
    #[error(
        "{what} of the tmpfs at {path:?} cannot be {wanted}, because {used} are in use; configure \
         at least that, or unpublish volumes first"
    )]
    TooSmall {
        /// The mount point.
        path: PathBuf,
        /// `size in bytes` or `number of inodes`.
        what: &'static str,
        /// What was configured.
        wanted: u64,
        /// What is in use.
        used: u64,
    },
    /// Pages of a tmpfs could reach a disk.
    #[error(
        "swap is on and the kernel cannot keep this tmpfs out of it (noswap: Linux 6.4+, initial \
         user namespace); turn swap off with swapoff, or set store.memory.allowSwap: true"
    )]
    Swap,
    /// Mounts made below this directory would be seen in the plugin's container only.
    #[error(
        "mounts below {path:?} do not reach the node, because the mount that holds it is not \
         shared; set mountPropagation: Bidirectional on the volumeMount of that hostPath"
    )]
    NotShared {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel's mount table could not be read.
    #[error("failed to read the mount table")]
    Table(#[from] super::table::Malformed),
}

impl MountError {
    /// What kind of failure this is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::System { source, .. } => kind_of(source),
            Self::Target { .. } => FailureKind::Invalid,
            Self::NoParent { .. }
            | Self::NotEmpty { .. }
            | Self::NotTmpfs { .. }
            | Self::TooSmall { .. }
            | Self::Swap
            | Self::NotShared { .. } => FailureKind::Precondition,
            Self::Table(_) => FailureKind::Internal,
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn kind_of(error: &io::Error) -> FailureKind {
    match errno_of(error) {
        Errno::ENOENT | Errno::ENOTDIR => FailureKind::NotFound,
        Errno::EPERM | Errno::EACCES => FailureKind::Precondition,
        Errno::ENOSPC | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => FailureKind::Exhausted,
        Errno::ENAMETOOLONG => FailureKind::Invalid,
        _ => FailureKind::Internal,
    }
}

fn hint(error: &io::Error) -> &'static str {
    match errno_of(error) {
        Errno::EPERM | Errno::EACCES => {
            " (CAP_SYS_ADMIN is needed: run the container as root with privileged: true)"
        }
        Errno::EBUSY => " (something is still mounted there)",
        _ => "",
    }
}

/// A failed system call that does not know yet under which path the user knows the place.
#[derive(Debug)]
pub(super) struct Failed {
    operation: &'static str,
    source: io::Error,
}

impl Failed {
    pub(super) fn new(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self { operation, source: source.into() }
    }

    pub(super) fn at(self, path: &Path) -> MountError {
        let Self { operation, source } = self;
        MountError::System { operation, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::failure::full_message;

    #[test_case(Errno::ENOENT, FailureKind::NotFound)]
    #[test_case(Errno::EPERM, FailureKind::Precondition)]
    #[test_case(Errno::ENOSPC, FailureKind::Exhausted)]
    #[test_case(Errno::EINVAL, FailureKind::Internal)]
    fn an_errno_has_a_kind(errno: Errno, kind: FailureKind) {
        assert_eq!(Failed::new("inspect", errno).at(Path::new("/x")).kind(), kind);
    }

    #[test]
    fn a_missing_privilege_is_named_beside_the_path() {
        let text = full_message(&Failed::new("unmount", Errno::EPERM).at(Path::new("/x")));
        assert!(text.starts_with("failed to unmount \"/x\" (CAP_SYS_ADMIN is needed"), "{text}");
        assert!(text.ends_with("Operation not permitted (os error 1)"), "{text}");
    }
}
