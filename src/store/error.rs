//! Why a store refuses, in words that say what to do about it.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use super::Medium;
use crate::failure::FailureKind;

/// Why the store could not do something.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Not enough room, even after eviction.
    #[error(
        "the {} store has no room: {needed} bytes are needed and {available} of {capacity} bytes \
         are available (the rest is shown by volumes or reserved by publishes under way); raise \
         store.{}.size, or lower what volumes show",
        medium.as_str(), medium.as_str()
    )]
    Full {
        /// The medium.
        medium: Medium,
        /// Bytes that the request needs.
        needed: u64,
        /// Bytes that could be given to it.
        available: u64,
        /// The configured size.
        capacity: u64,
    },
    /// The medium's file system is fuller than the store's own count says, even after eviction.
    #[error(
        "the file system of the {} store at {} is full: {needed} bytes are needed and {available} \
         are free, while store.{}.size allows more; free space there, or lower that size",
        medium.as_str(), root.display(), medium.as_str()
    )]
    NoSpace {
        /// The medium.
        medium: Medium,
        /// Where it is.
        root: PathBuf,
        /// Bytes that the request needs.
        needed: u64,
        /// Bytes that are free and promised to nobody.
        available: u64,
    },
    /// The medium's file system takes no writes.
    #[error(
        "the file system of the {} store at {} is read-only; mount it read-write (what is \
         published there stays readable meanwhile)",
        medium.as_str(), root.display()
    )]
    ReadOnly {
        /// The medium.
        medium: Medium,
        /// Where it is.
        root: PathBuf,
    },
    /// The medium's file system has no inodes left.
    #[error(
        "the {} store has no room: {needed} inodes are needed and {available} are available",
        medium.as_str()
    )]
    Inodes {
        /// The medium.
        medium: Medium,
        /// Inodes that the request needs.
        needed: u64,
        /// Inodes that are free.
        available: u64,
    },
    /// The medium's file system refused.
    #[error("failed to {action} in the {} store: {error}", medium.as_str())]
    Io {
        /// The medium.
        medium: Medium,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        #[source]
        error: Arc<io::Error>,
    },
    /// Another process has the store.
    #[error(
        "another node plugin uses the {} store at {}; give each a directory of its own",
        medium.as_str(), root.display()
    )]
    Locked {
        /// The medium.
        medium: Medium,
        /// Where it is.
        root: PathBuf,
    },
    /// A blob's file is not there any more; listing and fetching again will help.
    #[error("a blob disappeared from the store")]
    Gone,
    /// The content is not what the object version promised.
    #[error("{0}")]
    Corrupt(String),
}

impl StoreError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Full { .. } | Self::NoSpace { .. } | Self::Inodes { .. } => {
                FailureKind::Exhausted
            }
            Self::Io { error, .. } => io_kind(error),
            Self::Locked { .. } | Self::ReadOnly { .. } => FailureKind::Precondition,
            Self::Gone => FailureKind::Stale,
            Self::Corrupt(_) => FailureKind::Corrupt,
        }
    }
}

impl StoreError {
    /// Whether room on the medium would help.
    pub fn wants_room(&self) -> bool {
        match self {
            Self::Full { .. } | Self::NoSpace { .. } | Self::Inodes { .. } => true,
            Self::Io { error, .. } => error.kind() == io::ErrorKind::StorageFull,
            Self::Locked { .. } | Self::ReadOnly { .. } | Self::Gone | Self::Corrupt(_) => false,
        }
    }
}

/// The kind of an I/O error on our own files.
///
/// By `ErrorKind` where there is one: tempfile wraps errors so that nothing but kind and text of
/// what the system answered remains.
pub(crate) fn io_kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            FailureKind::Exhausted
        }
        io::ErrorKind::ReadOnlyFilesystem => FailureKind::Precondition,
        _ if error.to_string().contains("Too many open files") => FailureKind::Exhausted,
        _ => FailureKind::Internal,
    }
}

pub(super) fn io_error(medium: Medium, action: &'static str, error: io::Error) -> StoreError {
    StoreError::Io { medium, action, error: Arc::new(error) }
}
