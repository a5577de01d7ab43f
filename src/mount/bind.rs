//! Read-only bind mounts that never were writable.
//!
//! The obvious way, bind and then remount read-only, has two faults. Between the two calls the
//! mount is writable. And only the first call propagates: the node's copy, the one that containers
//! are given, would stay writable for ever. So the mount is finished while it is detached, where
//! no path leads to it, and attached as the last step. Whatever fails before that leaves nothing
//! to undo.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::error::{Failed, MountError};
use super::kernel;

/// Mounts the directory `source` at the directory `target`: read-only, nosuid, nodev.
///
/// The mount belongs to no peer group of `source`; it reaches other namespaces through the mount
/// that holds `target` only. What is mounted at `target` already is covered, not replaced. No
/// symlink is followed in the last component of either path. Linux 5.2+.
///
/// # Errors
/// `System`: `NotFound` if either is missing, `Precondition` without `CAP_SYS_ADMIN`, `Exhausted`
/// when the namespace has too many mounts. Nothing is mounted then.
#[cfg(test)]
fn bind_read_only(source: &Path, target: &Path) -> Result<(), MountError> {
    attach(&read_only_copy(source)?, target).map_err(|failed| failed.at(target))
}

/// A detached read-only copy of the mount at `source`, rooted there.
pub(super) fn read_only_copy(source: &Path) -> Result<OwnedFd, MountError> {
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let failed = |errno| Failed::new("make a read-only copy of the mount of", errno).at(source);
    let copy = kernel::clone_mount(source).map_err(failed)?;
    match kernel::restrict_mount(copy.as_fd(), attributes) {
        Ok(()) => Ok(copy),
        Err(Errno::ENOSYS) => copy_by_remount(source).map_err(failed),
        Err(errno) => Err(failed(errno)),
    }
}

/// Attaches a detached mount on top of what is at `target`.
pub(super) fn attach(copy: &OwnedFd, target: &Path) -> Result<(), Failed> {
    kernel::attach_mount(copy.as_fd(), target).map_err(|errno| Failed::new("mount at", errno))
}

/// What [`read_only_copy`] does on kernels without `mount_setattr(2)` (before Linux 5.12).
///
/// They change the flags of attached mounts only. So a thread attaches one in a mount namespace
/// of its own, where nobody else can look, and takes the detached copy from there; the namespace
/// ends with the thread.
fn copy_by_remount(source: &Path) -> nix::Result<OwnedFd> {
    thread::scope(|scope| {
        let copying = thread::Builder::new().spawn_scoped(scope, || remount_and_copy(source));
        let copying = copying.map_err(|_| Errno::EAGAIN)?;
        copying.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn remount_and_copy(source: &Path) -> nix::Result<OwnedFd> {
    let change =
        |point: &Path, flags| mount(None::<&str>, point, None::<&str>, flags, None::<&str>);
    unshare(CloneFlags::CLONE_NEWNS)?;
    change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    mount(Some(source), source, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    flags |= MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // A remount drops every flag that it does not repeat.
    if statvfs(source)?.flags().contains(FsFlags::ST_NOEXEC) {
        flags |= MsFlags::MS_NOEXEC;
    }
    change(source, flags)?;
    kernel::clone_mount(source)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::path::PathBuf;
    use std::sync::mpsc;

    use test_case::test_case;

    use super::*;
    use crate::failure::FailureKind;
    use crate::mount::point::{is_mount_point, unmount_all};
    use crate::mount::scratch::{
        in_peer_namespace, in_private_namespace, mount_tmpfs, set_propagation,
    };
    use crate::mount::table::{self, Propagation};

    #[derive(Clone, Copy)]
    enum Kernel {
        Current,
        Before5Dot12,
    }

    fn bind(kernel: Kernel, source: &Path, target: &Path) {
        match kernel {
            Kernel::Current => bind_read_only(source, target).unwrap(),
            Kernel::Before5Dot12 => attach(&copy_by_remount(source).unwrap(), target).unwrap(),
        }
    }

    fn source_and_target(dir: &Path) -> (PathBuf, PathBuf) {
        let (source, target) = (dir.join("source"), dir.join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("file"), "content").unwrap();
        (source, target)
    }

    fn is_writable(target: &Path) -> bool {
        match fs::write(target.join("new"), "content") {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test_case(Kernel::Current)]
    #[test_case(Kernel::Before5Dot12)]
    fn a_bind_is_read_only_even_for_root_while_its_source_stays_writable(kernel: Kernel) {
        in_private_namespace(|dir| {
            let (source, target) = source_and_target(dir);
            bind(kernel, &source, &target);
            assert!(!is_writable(&target));
            fs::write(source.join("file"), "newer").unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "newer");
        });
    }

    #[test_case(Kernel::Current)]
    #[test_case(Kernel::Before5Dot12)]
    fn a_bind_is_nosuid_nodev_private_and_may_execute(kernel: Kernel) {
        in_private_namespace(|dir| {
            let (source, target) = source_and_target(dir);
            bind(kernel, &source, &target);
            let entry = table::entry_of(&target).unwrap();
            for option in ["ro", "nosuid", "nodev"] {
                assert!(entry.has_option(option), "{option} is missing: {entry:?}");
            }
            assert!(!entry.has_option("noexec"));
            assert_eq!(entry.propagation, Propagation::Private);
        });
    }

    #[test]
    fn the_older_way_keeps_noexec() {
        in_private_namespace(|dir| {
            let (source, target) = source_and_target(dir);
            mount(Some("test"), &source, Some("tmpfs"), MsFlags::MS_NOEXEC, None::<&str>).unwrap();
            bind(Kernel::Before5Dot12, &source, &target);
            assert!(table::entry_of(&target).unwrap().has_option("noexec"));
        });
    }

    #[test_case(Kernel::Current)]
    #[test_case(Kernel::Before5Dot12)]
    fn a_bind_reaches_a_peer_namespace_read_only_and_leaves_it_again(kernel: Kernel) {
        in_private_namespace(|dir| {
            mount_tmpfs(dir);
            set_propagation(dir, MsFlags::MS_SHARED);
            let (source, target) = source_and_target(dir);
            thread::scope(|scope| {
                let (ask, asked) = mpsc::channel();
                let (answer, answers) = mpsc::channel();
                let target = &target;
                scope.spawn(move || {
                    in_peer_namespace(|| {
                        for () in asked {
                            answer
                                .send((is_mount_point(target).unwrap(), is_writable(target)))
                                .unwrap();
                        }
                    });
                });
                // Moved, so that a failing assertion ends the peer as well.
                let peer_sees = move || {
                    ask.send(()).unwrap();
                    answers.recv().unwrap()
                };
                assert_eq!(peer_sees(), (false, true));
                bind(kernel, &source, target);
                assert_eq!(peer_sees(), (true, false));
                assert_eq!(unmount_all(target).unwrap(), 1);
                assert_eq!(peer_sees(), (false, true));
            });
        });
    }

    #[test]
    fn a_bind_onto_a_symlink_is_refused() {
        in_private_namespace(|dir| {
            let (source, target) = source_and_target(dir);
            let link = dir.join("link");
            std::os::unix::fs::symlink(&target, &link).unwrap();
            bind_read_only(&source, &link).unwrap_err();
            assert!(!is_mount_point(&target).unwrap());
        });
    }

    #[test]
    fn a_missing_source_is_named() {
        in_private_namespace(|dir| {
            let error = bind_read_only(&dir.join("missing"), dir).unwrap_err();
            assert_eq!(error.kind(), FailureKind::NotFound);
            assert!(error.to_string().ends_with("/missing\""), "{error}");
        });
    }
}
