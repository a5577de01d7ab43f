//! What went wrong, in words no transport owns.
//!
//! Every error of the crate answers [`FailureKind`]. The domain never names a gRPC code or an
//! errno: `csi::status` maps kinds to codes, and a FUSE view would map them to errnos, each in one
//! exhaustive table. A new kind therefore cannot silently become "internal".

use std::fmt;

/// The closed set of reasons why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The request is wrong and will stay wrong: a field is missing, malformed or contradictory.
    Invalid,
    /// The bucket, key, volume or path does not exist.
    NotFound,
    /// The identity is known and lacks the right.
    Denied,
    /// The credentials themselves are wrong, unknown or expired.
    Unauthenticated,
    /// The thing exists already, with other properties.
    Incompatible,
    /// The surroundings must change first (clock, TLS, an archived object, swap).
    Precondition,
    /// Another operation on the same volume is under way.
    Busy,
    /// A limit was reached: a store, a quota, descriptors, space.
    Exhausted,
    /// It may pass: the network, a 5xx answer, throttling.
    Unavailable,
    /// The object changed while it was being read; listing again will help.
    Stale,
    /// The bytes received are not the bytes that were promised.
    Corrupt,
    /// The caller's time ran out while the work goes on.
    Deadline,
    /// The caller, or an unpublish, ended the work.
    Cancelled,
    /// A defect of ours, or of the machine in a way nobody planned for.
    Internal,
}

impl FailureKind {
    /// Every kind, for sweeps over the boundary tables.
    pub const ALL: [Self; 14] = [
        Self::Invalid,
        Self::NotFound,
        Self::Denied,
        Self::Unauthenticated,
        Self::Incompatible,
        Self::Precondition,
        Self::Busy,
        Self::Exhausted,
        Self::Unavailable,
        Self::Stale,
        Self::Corrupt,
        Self::Deadline,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The word used in logs and as a metric label: lower case, `_` between words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unauthenticated => "unauthenticated",
            Self::Incompatible => "incompatible",
            Self::Precondition => "precondition",
            Self::Busy => "busy",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes an error and all its sources on one line, `outer: cause: root cause`.
///
/// A source whose text already ends its parent's text is not repeated.
pub fn full_message(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = cause.source();
    }
    text
}
