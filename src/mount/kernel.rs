//! Thin wrappers of the system calls that nix lacks: `statx(2)`, `open_tree(2)`, `move_mount(2)`,
//! `mount_setattr(2)`, and what FUSE needs. No policy: flags are fixed where only one combination is ever right.

use std::ffi::c_int;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::NixPath;
use nix::errno::Errno;

/// What the VFS knows about a path without asking the filesystem.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statx {
    /// Whether the path is where a mount begins.
    pub(super) is_mount_root: bool,
    /// The mount that holds the path: the first field of its line in mountinfo.
    pub(super) mount_id: u64,
    /// The device number of its file system, without the major part (0 for what has no device).
    pub(super) device_minor: u32,
}

/// Gives the calling thread a table of descriptors of its own, with the standard three only.
///
/// `close_range(2)` with `CLOSE_RANGE_UNSHARE`, Linux 5.9+. The thread must use no descriptor that was
/// opened before.
pub(super) fn close_all_of_this_thread() -> nix::Result<()> {
    let flags = libc::CLOSE_RANGE_UNSHARE.cast_signed();
    // SAFETY: no memory is involved. The table is this thread's alone when descriptors are closed, so
    // whoever owns them on other threads still has them.
    let answer = unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    Errno::result(answer).map(drop)
}

/// `statx(2)` with an empty mask. Linux 5.8+ for both answers.
///
/// Follows no symlink in the last component, triggers no automount. With `DONT_SYNC` and no field
/// asked for, a FUSE server is not consulted, so a hanging one does not block and a dead one does
/// not fail the call.
pub(super) fn statx(path: &Path) -> nix::Result<Statx> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    let answer = path.with_nix_path(|path| {
        // SAFETY: `path` is NUL-terminated and `buffer` has the size of the kernel's structure;
        // both outlive the call.
        unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, 0, buffer.as_mut_ptr()) }
    })?;
    Errno::result(answer)?;
    // SAFETY: the structure is plain integers, zeroed before the kernel filled it.
    let found = unsafe { buffer.assume_init() };
    let mount_root = u64::from(libc::STATX_ATTR_MOUNT_ROOT.unsigned_abs());
    Ok(Statx {
        is_mount_root: found.stx_attributes & mount_root != 0,
        mount_id: found.stx_mnt_id,
        device_minor: found.stx_dev_minor,
    })
}

/// `open_tree(2)`: a detached, close-on-exec copy of the one mount at `path`. Linux 5.2+.
///
/// Nobody can reach the copy by a path; it vanishes with its descriptor unless it is attached.
pub(super) fn clone_mount(path: &Path) -> nix::Result<OwnedFd> {
    let no_follow = libc::AT_SYMLINK_NOFOLLOW.unsigned_abs();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | no_follow;
    let answer = path.with_nix_path(|path| {
        // SAFETY: `path` is NUL-terminated and outlives the call.
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }
    })?;
    let fd = c_int::try_from(Errno::result(answer)?).expect("a descriptor fits its type");
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `mount_setattr(2)`: adds `attributes` to the mount of `fd`, makes it private. Linux 5.12+.
pub(super) fn restrict_mount(fd: BorrowedFd<'_>, attributes: u64) -> nix::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated constant; the pointer and size describe `attr`, which
    // outlives the call and is only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(answer).map(drop)
}

/// `move_mount(2)`: attaches the detached mount `fd` on top of what is at `path`. Linux 5.2+.
///
/// Follows no symlink in the last component of `path`.
pub(super) fn attach_mount(fd: BorrowedFd<'_>, path: &Path) -> nix::Result<()> {
    let answer = path.with_nix_path(|path| {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                fd.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                path.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        }
    })?;
    Errno::result(answer).map(drop)
}

/// `dup3(2)`: the number `place` leads to what `fd` leads to, closed on exec; what it led to is closed.
pub(super) fn put_in_place(fd: BorrowedFd<'_>, place: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: both numbers are open for the length of the call, and `place` stays open: whoever owns
    // it closes what it leads to then.
    let answer = unsafe { libc::dup3(fd.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) };
    Errno::result(answer).map(drop)
}

/// `ioctl(2)` `FUSE_DEV_IOC_BACKING_CLOSE`: no further open leads to a backing file. Linux 6.9+.
pub(super) fn close_backing(device: BorrowedFd<'_>, id: u32) -> nix::Result<()> {
    const CLOSE: libc::Ioctl = libc::_IOW::<u32>(b'\xe5' as u32, 2);
    // SAFETY: the pointer is to a number of the size that the request names, which is only read.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), CLOSE, &raw const id) };
    Errno::result(answer).map(drop)
}

/// `poll(2)` without waiting: whether the other end is gone.
pub(super) fn has_hung_up(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: the pointer is to one structure, which outlives the call.
    let answer = unsafe { libc::poll(&raw mut asked, 1, 0) };
    Errno::result(answer)?;
    Ok(asked.revents & (libc::POLLERR | libc::POLLHUP) != 0)
}
