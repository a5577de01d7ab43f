//! Telling the kernel what it must not believe any longer.
//!
//! Each name that leads elsewhere is told by itself. That alone is not one moment for all of them: a
//! process could see some names from before and others from after the swap. So since Linux 6.16 one
//! notice comes first that makes all names be looked up again. It does not do alone, since a
//! `READDIRPLUS` under way brings back what it was answered before the swap (the notice of a name
//! waits for it); and it has a price: the kernel also forgets what it cached of unchanged files,
//! unless they are open (it drops an inode with its last name). So it is sent only when more than one
//! name leads elsewhere.
//!
//! Notices take locks in the kernel that a lookup under way may hold:
//! they are sent from threads that serve no requests, and without any lock of ours.

use std::{
    ffi::OsStr,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use fuser::{INodeNo, Notifier};

use super::{changes::Outdated, table::Table};

/// `FUSE_NOTIFY_INC_EPOCH`, which fuser does not have.
const INC_EPOCH: i32 = 8;

/// How the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notices {
    /// All at one moment, where it knows how.
    AtOnce,
    /// Name by name, as to older kernels.
    #[cfg(test)]
    OneByOne,
}

/// Tells the kernel what is wrong about the `old` table.
///
/// # Errors
/// What the kernel answers: `ENOTCONN` for a volume that is unmounted. All is tried, and the first
/// error returned.
///
/// # Blocking
/// Waits for requests under way in the directories concerned.
pub(super) fn tell(
    device: &impl AsFd,
    notifier: &Notifier,
    old: &Table,
    outdated: &Outdated,
    notices: Notices,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut note = |answer: io::Result<()>| {
        if outcome.is_ok() {
            outcome = answer;
        }
    };
    // One name changes at once in any case.
    if notices == Notices::AtOnce && outdated.names.len() > 1 {
        note(increase_epoch(device));
    }
    for id in &outdated.names {
        let parent = INodeNo(old.number(old.parent(*id)));
        note(notifier.inval_entry(parent, OsStr::from_bytes(old.name(*id))));
    }
    for number in &outdated.directories {
        // A negative offset: attributes only.
        note(notifier.inval_inode(INodeNo(*number), -1, 0));
    }
    outcome
}

/// Makes the kernel look up every name again, where it knows how.
fn increase_epoch(device: &impl AsFd) -> io::Result<()> {
    // struct fuse_out_header: length, code in place of an error, 0 in place of a request.
    let mut notice = [0; 16];
    notice[..4].copy_from_slice(&16_u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
    match nix::unistd::write(device, &notice) {
        Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
