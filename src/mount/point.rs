//! Whether something is mounted at a path, and taking all of it away.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::error::{Failed, MountError};
use super::kernel;

/// How many mounts may lie on one another before we suspect that somebody mounts as fast as we
/// unmount.
const STACK_LIMIT: usize = 128;

/// Whether `path` is a mount point. A missing path is none; a FUSE mount without a server is one.
///
/// Follows no symlink at `path` itself, triggers no automount, and does not wait for the server of
/// a FUSE filesystem mounted there. Linux 5.8+.
///
/// # Errors
/// `System` when the path cannot be reached for another reason than that it is missing.
pub(super) fn is_mount_point(path: &Path) -> Result<bool, MountError> {
    is_mounted(path).map_err(|failed| failed.at(path))
}

/// Unmounts everything that is mounted at `path`, lazily, and says how many mounts that were.
///
/// Lazily: the mounts leave the tree at once, and files that are open in them stay usable. A path
/// that is missing or not mounted is 0. Mounts in other namespaces go with it if `path` is in a
/// shared mount.
///
/// # Errors
/// `System`: `Precondition` without `CAP_SYS_ADMIN`; `Internal` for a mount that this user
/// namespace may not remove, or when mounts come as fast as they go.
#[cfg(test)]
pub(super) fn unmount_all(path: &Path) -> Result<usize, MountError> {
    detach_all(path).map_err(|failed| failed.at(path))
}

pub(super) fn is_mounted(path: &Path) -> Result<bool, Failed> {
    match kernel::statx(path) {
        Ok(found) => Ok(found.is_mount_root),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        // Kernels that ask the server all the same: only a mount can answer like this.
        Err(Errno::ENOTCONN | Errno::EIO | Errno::ESTALE) => Ok(true),
        Err(errno) => Err(Failed::new("inspect", errno)),
    }
}

pub(super) fn detach_all(path: &Path) -> Result<usize, Failed> {
    for count in 0..STACK_LIMIT {
        if !is_mounted(path)? {
            return Ok(count);
        }
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Another process unmounted it between the question and the call.
            Err(Errno::EINVAL | Errno::ENOENT) if !is_mounted(path)? => return Ok(count),
            Err(errno) => return Err(Failed::new("unmount", errno)),
        }
    }
    Err(Failed::new("unmount everything at", Errno::EBUSY))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::mount::scratch::{in_private_namespace, mount_fuse, mount_tmpfs};

    #[test]
    fn a_missing_path_is_no_mount_point_and_unmounts_nothing() {
        let missing = Path::new("/nonexistent/s3view");
        assert!(!is_mount_point(missing).unwrap());
        assert_eq!(unmount_all(missing).unwrap(), 0);
    }

    #[test]
    fn stacked_mounts_are_all_unmounted() {
        in_private_namespace(|dir| {
            let point = dir.join("stack");
            fs::create_dir(&point).unwrap();
            for _ in 0..3 {
                mount_tmpfs(&point);
            }
            assert_eq!(unmount_all(&point).unwrap(), 3);
            assert!(!is_mount_point(&point).unwrap());
            assert_eq!(unmount_all(&point).unwrap(), 0);
        });
    }

    #[test]
    fn a_symlink_to_a_mount_point_is_left_alone() {
        in_private_namespace(|dir| {
            let (point, link) = (dir.join("point"), dir.join("link"));
            fs::create_dir(&point).unwrap();
            std::os::unix::fs::symlink(&point, &link).unwrap();
            mount_tmpfs(&point);
            assert!(!is_mount_point(&link).unwrap());
            assert_eq!(unmount_all(&link).unwrap(), 0);
            assert!(is_mount_point(&point).unwrap());
        });
    }

    #[test]
    fn a_mount_that_is_in_use_goes_lazily() {
        in_private_namespace(|dir| {
            let point = dir.join("busy");
            fs::create_dir(&point).unwrap();
            mount_tmpfs(&point);
            fs::write(point.join("file"), "content").unwrap();
            let open = File::open(point.join("file")).unwrap();
            assert_eq!(unmount_all(&point).unwrap(), 1);
            assert_eq!(std::io::read_to_string(open).unwrap(), "content");
        });
    }

    #[test]
    fn a_fuse_mount_with_a_hanging_server_neither_blocks_nor_stays() {
        in_private_namespace(|dir| {
            let Some(_server) = mount_fuse(dir) else { return };
            assert!(is_mount_point(dir).unwrap());
            assert_eq!(unmount_all(dir).unwrap(), 1);
        });
    }

    #[test]
    fn a_fuse_mount_with_a_dead_server_is_a_mount_point_and_goes() {
        in_private_namespace(|dir| {
            let Some(server) = mount_fuse(dir) else { return };
            drop(server);
            let error = fs::read_dir(dir).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
            assert!(is_mount_point(dir).unwrap());
            assert_eq!(unmount_all(dir).unwrap(), 1);
        });
    }
}
