//! How full a filesystem is.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::error::{Failed, MountError};

/// The room of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// Size in bytes; 0 for a filesystem without a limit.
    pub(super) total_bytes: u64,
    /// Bytes that a process without privileges may still write.
    pub(super) available_bytes: u64,
    /// Number of inodes; 0 for a filesystem that makes them as needed.
    pub(super) total_inodes: u64,
    /// Inodes that are not in use.
    pub(super) free_inodes: u64,
}

/// The room of the filesystem that holds `path`.
///
/// # Errors
/// `System`: `NotFound` for a missing path.
///
/// # Blocking
/// Asks the filesystem: not for a path that may lie in a FUSE mount without a server.
pub(super) fn space(path: &Path) -> Result<Space, MountError> {
    let found = statvfs(path).map_err(|errno| Failed::new("read the space of", errno).at(path))?;
    Ok(Space {
        total_bytes: found.blocks().saturating_mul(found.fragment_size()),
        available_bytes: found.blocks_available().saturating_mul(found.fragment_size()),
        total_inodes: found.files(),
        free_inodes: found.files_free(),
    })
}
