//! Going on with a mount that a former process served.
//!
//! The library wants to shake hands with a kernel that has done so long ago. It gets one end of a
//! socket pair, over which we ask what the kernel asked when the mount was made; then the kept
//! descriptor takes the place of that end. What the former process took from the kernel and did not
//! answer is sent again, before anything else is read: by the kernel, or, where it cannot, by a relay
//! that keeps it, and then the library goes on with its end (relay.rs).

use std::{io, os::fd::OwnedFd};

use fuser::{Config, Session, SessionACL};
use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::SndBuf},
    unistd::{read, write},
};
use thiserror::Error;

use super::{BadNumbers, adapter::Adapter, session::Negotiated};
use crate::failure::FailureKind;

/// Why a mount cannot be gone on with. It was left as it is.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// A version of the driver wrote it that this one does not know.
    #[error(
        "{what} has a format that this version of the driver does not know; go on with the version \
         that wrote it, or publish the volume anew"
    )]
    Unknown {
        /// Which part.
        what: &'static str,
    },
    /// Something was lost or changed.
    #[error("{what} is damaged or missing; publish the volume anew")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// The inode numbers are not those of the listing.
    #[error("the inode table of a FUSE mount is not one; publish the volume anew")]
    Numbers {
        /// In which way.
        source: BadNumbers,
    },
    /// It is of another mount than the descriptor.
    #[error("{what} belongs to another mount than the descriptor; publish the volume anew")]
    Other {
        /// Which part.
        what: &'static str,
    },
    /// The mount is gone.
    #[error("the FUSE mount was unmounted or aborted")]
    Ended,
    /// The system refused.
    #[error("failed to {action} a FUSE mount")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ResumeError {
    /// The kind of this failure: `Incompatible` for an unknown version, `Corrupt` for what is no such
    /// thing, `NotFound` for a mount that is gone, `Internal` for the system.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Unknown { .. } | Self::Numbers { source: BadNumbers::Unknown } => {
                FailureKind::Incompatible
            }
            Self::Damaged { .. } | Self::Numbers { .. } | Self::Other { .. } => {
                FailureKind::Corrupt
            }
            Self::Ended => FailureKind::NotFound,
            Self::System { .. } => FailureKind::Internal,
        }
    }
}

/// `FUSE_INIT`.
const INIT: u32 = 26;

/// `FUSE_INIT_EXT`: there are more than 32 bits of capabilities.
const MORE_FLAGS: u32 = 1 << 30;

/// Bytes of each way of a socket pair: some of the longest answers. The kernel may permit less, and
/// then one at a time.
const BUFFER: usize = 256 << 10;

/// A session that believes it has just shaken hands with the kernel; its descriptor leads to the one
/// that is returned with it.
///
/// # Errors
/// What the system answers.
pub(super) fn introduce(
    adapter: Adapter,
    config: Config,
    negotiated: &Negotiated,
) -> io::Result<(Session<Adapter>, OwnedFd)> {
    let (ours, theirs) = pair()?;
    write(&ours, &init(negotiated))?;
    let session = Session::from_fd(adapter, theirs, SessionACL::All, config)?;
    let mut answer = [0; 256];
    let length = read(&ours, &mut answer)?;
    // struct fuse_out_header: length, error.
    match answer[..length] {
        [_, _, _, _, 0, 0, 0, 0, ..] => Ok((session, ours)),
        _ => Err(io::Error::other("the FUSE library refused the handshake of the mount")),
    }
}

/// A socket pair, on which a message has a beginning and an end, and the longest answer has room.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&ours, &theirs] {
        setsockopt(end, SndBuf, &BUFFER)?;
    }
    Ok((ours, theirs))
}

fn init(negotiated: &Negotiated) -> Vec<u8> {
    let Negotiated { protocol: (major, minor), offered, max_readahead, .. } = *negotiated;
    let low = u32::try_from(offered & u64::from(u32::MAX)).expect("32 bits") | MORE_FLAGS;
    let high = u32::try_from(offered >> 32).expect("32 bits");
    // struct fuse_init_in, the end of which is unused.
    let body: Vec<u8> = [major, minor, max_readahead, low, high]
        .into_iter()
        .chain([0; 11])
        .flat_map(u32::to_ne_bytes)
        .collect();
    // struct fuse_in_header: length, operation, 8 bytes of number, inode 0, nobody.
    let length = u32::try_from(40 + body.len()).expect("a short message");
    let head = [length, INIT, 2, 0, 0, 0, 0, 0, 0, 0];
    head.into_iter().flat_map(u32::to_ne_bytes).chain(body).collect()
}
