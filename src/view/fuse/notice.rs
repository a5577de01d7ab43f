//! Telling the kernel what it must not believe any longer.
//!
//! Before Linux 6.16 each name that leads elsewhere is told by itself. That is not one moment for all of
//! them: a process could see some names from before and others from after the swap. Since then one
//! notice makes all names be looked up again. It has a price: the kernel also forgets what it cached
//! of unchanged files, unless they are open (it drops an inode with its last name). So it is sent only
//! when more than one name leads elsewhere. And once is not enough: a `READDIRPLUS` under way brings
//! back what it was answered before the swap, as if it had been told after it. The notice is sent once
//! more when the kernel has taken that in.
//!
//! The notice of a name waits for lookups and listings under way in its directory, and it goes on
//! waiting when its process is killed: that process cannot end before another one has answered them,
//! or the connection is aborted. That is why a name is told by itself only where nothing else does.
//! Notices are sent from threads that serve no requests, straight to the device, and without any lock
//! of ours.
//!
//! Source: kernel `include/uapi/linux/fuse.h`, `fuse_out_header` and `fuse_notify_*_out`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::errno::Errno;

/// `FUSE_NOTIFY_INVAL_INODE`.
const INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`.
const INVAL_ENTRY: i32 = 3;
/// `FUSE_NOTIFY_RESEND`, Linux 6.9.
const RESEND: i32 = 7;
/// `FUSE_NOTIFY_INC_EPOCH`, Linux 6.16.
const INC_EPOCH: i32 = 8;

/// What is wrong about what the kernel knows.
#[derive(Debug)]
pub(super) struct Untold<'a, N> {
    /// Names that lead nowhere or elsewhere, each with the number of its directory.
    pub(super) names: N,
    /// Directories with other children.
    pub(super) directories: &'a [u64],
}

/// How the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notices {
    /// All at one moment, where it knows how.
    AtOnce,
    /// Name by name, as to older kernels.
    #[cfg(test)]
    OneByOne,
}

/// How the kernel was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// All names at one moment: see [`forget_names`] for those that it may still be taking in.
    AtOnce,
    /// Name by name, and all is told.
    OneByOne,
}

/// Tells the kernel what is wrong.
///
/// # Errors
/// What the kernel answers: `ENOTCONN` for a volume that is unmounted. All is tried, and the first
/// error returned.
///
/// # Blocking
/// Name by name it waits for requests under way in the directories concerned.
pub(super) fn tell<'a>(
    device: impl AsFd,
    untold: Untold<'_, impl ExactSizeIterator<Item = (u64, &'a [u8])>>,
    notices: Notices,
) -> io::Result<Told> {
    let device = device.as_fd();
    let mut outcome = Ok(());
    let mut note = |answer: nix::Result<()>| {
        if outcome.is_ok() {
            outcome = answer;
        }
    };
    // One name changes at once in any case.
    let many = notices == Notices::AtOnce && untold.names.len() > 1;
    let at_once = many && forget_names(device)?;
    if !at_once {
        for (directory, name) in untold.names {
            note(forget_name(device, directory, name));
        }
    }
    for number in untold.directories {
        note(forget_attributes(device, *number));
    }
    outcome?;
    Ok(if at_once { Told::AtOnce } else { Told::OneByOne })
}

/// Makes the kernel send again, first of all, what a process took from it and did not answer.
///
/// # Errors
/// `EINVAL` before Linux 6.9.
pub(super) fn resend(device: impl AsFd) -> io::Result<()> {
    Ok(send(device.as_fd(), RESEND, &[])?)
}

/// Makes the kernel look up every name again. False where it does not know how, before Linux 6.16.
///
/// # Errors
/// What the kernel answers.
///
/// # Blocking
/// Does not.
pub(super) fn forget_names(device: impl AsFd) -> io::Result<bool> {
    match send(device.as_fd(), INC_EPOCH, &[]) {
        Err(Errno::EINVAL) => Ok(false),
        answer => Ok(answer.map(|()| true)?),
    }
}

fn forget_name(device: BorrowedFd<'_>, directory: u64, name: &[u8]) -> nix::Result<()> {
    let length = u32::try_from(name.len()).map_err(|_| Errno::ENAMETOOLONG)?;
    let flags = 0_u32;
    let (directory, length, flags) =
        (directory.to_ne_bytes(), length.to_ne_bytes(), flags.to_ne_bytes());
    known(send(device, INVAL_ENTRY, &[&directory, &length, &flags, name, &[0]]))
}

fn forget_attributes(device: BorrowedFd<'_>, number: u64) -> nix::Result<()> {
    known(invalidate_attributes(device, number))
}

fn invalidate_attributes(device: BorrowedFd<'_>, number: u64) -> nix::Result<()> {
    // A negative offset: no content.
    let (offset, length) = (-1_i64, 0_i64);
    let parts = [number.to_ne_bytes(), offset.to_ne_bytes(), length.to_ne_bytes()];
    send(device, INVAL_INODE, &[parts.as_flattened()])
}

/// Whether the kernel knows an inode. It asks for its attributes again, if so.
///
/// # Errors
/// What the kernel answers.
///
/// # Blocking
/// Does not.
pub(super) fn is_known(device: impl AsFd, number: u64) -> io::Result<bool> {
    match invalidate_attributes(device.as_fd(), number) {
        Err(Errno::ENOENT) => Ok(false),
        answer => Ok(answer.map(|()| true)?),
    }
}

/// What the kernel does not know, it need not forget.
fn known(answer: nix::Result<()>) -> nix::Result<()> {
    match answer {
        Err(Errno::ENOENT) => Ok(()),
        answer => answer,
    }
}

/// Sends one notice: a header with its code in place of an error and 0 in place of a request.
fn send(device: BorrowedFd<'_>, code: i32, parts: &[&[u8]]) -> nix::Result<()> {
    let mut notice = vec![0; 16];
    notice.extend(parts.iter().copied().flatten());
    let length = u32::try_from(notice.len()).map_err(|_| Errno::EMSGSIZE)?;
    notice[..4].copy_from_slice(&length.to_ne_bytes());
    notice[4..8].copy_from_slice(&code.to_ne_bytes());
    nix::unistd::write(device, &notice).map(drop)
}
