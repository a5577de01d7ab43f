//! From what went wrong to what the kubelet, or the provisioner, should do: the tables of gRPC codes.
//!
//! The kubelet reads `Canceled`, `DeadlineExceeded`, `Unavailable`, `ResourceExhausted` and
//! `Aborted` from a publish as "outcome unknown" and every other code as "surely nothing is
//! mounted": it then forgets the volume and never asks to unpublish it. So a kind may map to such
//! a final code only because the node undoes its work before it fails with that kind. The one
//! exception is `ALREADY_EXISTS`, which CSI demands for a target that is published with other
//! arguments: that target stays mounted, and the kubelet never changes a volume's arguments.
//!
//! The provisioner reads `Unavailable`, `Aborted`, `Canceled` and `DeadlineExceeded` from a
//! `CreateVolume` as "still running": it asks for the same volume for ever, even when its claim is gone.
//! `ResourceExhausted` makes it choose another node. Neither is ever so here: a creation leaves nothing,
//! and no node matters.

use tonic::{Code, Status};

use crate::failure::{FailureKind, full_message};

/// The code for a failure of a node RPC.
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::Invalid => Code::InvalidArgument,
        FailureKind::NotFound => Code::NotFound,
        FailureKind::Denied => Code::PermissionDenied,
        FailureKind::Unauthenticated => Code::Unauthenticated,
        FailureKind::Incompatible => Code::AlreadyExists,
        FailureKind::Precondition => Code::FailedPrecondition,
        // The only uses of ABORTED: an unpublish of the same target is under way.
        FailureKind::Busy | FailureKind::Cancelled => Code::Aborted,
        FailureKind::Exhausted => Code::ResourceExhausted,
        FailureKind::Unavailable | FailureKind::Stale => Code::Unavailable,
        FailureKind::Corrupt => Code::DataLoss,
        FailureKind::Deadline => Code::DeadlineExceeded,
        FailureKind::Internal => Code::Internal,
    }
}

/// The code for a failure of `CreateVolume`: never one that says that something goes on.
#[deny(clippy::wildcard_enum_match_arm)]
fn create_code(kind: FailureKind) -> Code {
    match kind {
        // Something else has to change first, an endpoint that cannot be reached included.
        FailureKind::Unavailable
        | FailureKind::Exhausted
        | FailureKind::Stale
        | FailureKind::Busy
        | FailureKind::Cancelled
        | FailureKind::Deadline => Code::FailedPrecondition,
        FailureKind::Invalid
        | FailureKind::NotFound
        | FailureKind::Denied
        | FailureKind::Unauthenticated
        | FailureKind::Incompatible
        | FailureKind::Precondition
        | FailureKind::Corrupt
        | FailureKind::Internal => code(kind),
    }
}

/// The longest message in bytes: it travels in a header, and clients refuse headers over 8 KiB
/// (percent-encoding may triple a byte).
const LONGEST: usize = 2 << 10;

/// The status for a failure: its code, and its whole chain as the message, which is what a user
/// reads in `kubectl describe pod`.
pub(super) fn status(kind: FailureKind, error: &(dyn std::error::Error + 'static)) -> Status {
    Status::new(code(kind), clipped(full_message(error)))
}

/// The status for a failure of `CreateVolume`: what a user reads in `kubectl describe pvc`.
pub(super) fn create_status(
    kind: FailureKind,
    error: &(dyn std::error::Error + 'static),
) -> Status {
    Status::new(create_code(kind), clipped(full_message(error)))
}

fn clipped(mut message: String) -> String {
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST));
        message.push_str(" ...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes after which the kubelet keeps a volume as "uncertain" (`isFinalError`).
    const OPEN: [Code; 5] = [
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::Aborted,
    ];

    /// Work goes on after these, so the kubelet must keep asking and must unpublish.
    #[test]
    fn what_goes_on_has_an_open_code() {
        for kind in [FailureKind::Deadline, FailureKind::Busy, FailureKind::Cancelled] {
            assert!(OPEN.contains(&code(kind)), "{kind}");
        }
    }

    #[test]
    fn a_volume_that_is_not_created_is_not_still_being_created() {
        for kind in FailureKind::ALL {
            assert!(!OPEN.contains(&create_code(kind)), "{kind}");
            assert!(!matches!(create_code(kind), Code::Ok | Code::Unknown), "{kind}");
        }
    }

    #[test]
    fn a_long_message_is_clipped_between_characters() {
        let clipped = clipped("\u{444}".repeat(2000));
        assert!(clipped.len() <= LONGEST + 4 && clipped.ends_with(" ..."));
        assert_eq!(super::clipped("short".to_owned()), "short");
    }

    #[test]
    fn no_failure_is_ok_or_unknown() {
        for kind in FailureKind::ALL {
            assert!(!matches!(code(kind), Code::Ok | Code::Unknown), "{kind}");
        }
    }
}
