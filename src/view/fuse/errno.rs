//! What a process is told when its read fails: the one table from failures to errnos.

use fuser::Errno;

use crate::failure::FailureKind;

/// The errno of a failure, the same for every operation.
///
/// `ESTALE` stands for all that happened to an object after it was listed: it was replaced, or it
/// is gone. The path leads to what is there now as soon as the volume is refreshed.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn errno(kind: FailureKind) -> Errno {
    match kind {
        FailureKind::Invalid => Errno::EINVAL,
        FailureKind::Denied | FailureKind::Unauthenticated => Errno::EACCES,
        FailureKind::NotFound | FailureKind::Stale => Errno::ESTALE,
        FailureKind::Precondition => Errno::EPERM,
        FailureKind::Busy => Errno::EBUSY,
        FailureKind::Exhausted => Errno::ENOMEM,
        FailureKind::Incompatible
        | FailureKind::Unavailable
        | FailureKind::Corrupt
        | FailureKind::Deadline
        | FailureKind::Cancelled
        | FailureKind::Internal => Errno::EIO,
    }
}
