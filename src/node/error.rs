//! Why an operation on a volume failed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::quota::OverLimit;
use crate::{
    failure::FailureKind,
    fetch::{FetchError, ResolveError},
    mount::MountError,
    problems::Problems,
    source::SourceError,
    store::StoreError,
    view::{fuse::FuseError, linkfarm::ViewError},
    volume::SpecError,
};

/// A failed operation. Cheap to clone, because all who wait for a publish hear of it.
#[derive(Debug, Clone, Error)]
pub enum NodeError {
    /// The request names things that cannot be.
    #[error("{0}")]
    Invalid(Arc<Problems>),
    /// The volume's attributes are wrong, or the policy forbids them.
    #[error(transparent)]
    Spec(#[from] Arc<SpecError>),
    /// S3 refused, or could not be reached.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The sources make no listing.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The content could not be brought here.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store has no room, or its medium failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The files could not be shown.
    #[error(transparent)]
    View(#[from] Arc<ViewError>),
    /// The FUSE view could not be served.
    #[error(transparent)]
    Fuse(#[from] Arc<FuseError>),
    /// What a FUSE view needs over a restart of the plugin could not be written.
    #[error("failed to make {}", path.display())]
    Ledger {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: Arc<std::io::Error>,
    },
    /// A mount, or the target path, failed.
    #[error(transparent)]
    Mount(#[from] Arc<MountError>),
    /// The registry could not be written or read.
    #[error(
        "failed to {action} this volume's registry entry, which takes a page of the memory store"
    )]
    Registry {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        #[source]
        error: Arc<std::io::Error>,
    },
    /// The sources hold more than the volume may show.
    #[error(
        "the sources hold {size} bytes (in whole pages), and maxSize allows {limit}; raise maxSize \
         or narrow prefix or include"
    )]
    TooLarge {
        /// What the listing needs.
        size: u64,
        /// The volume's `maxSize` in bytes.
        limit: u64,
    },
    /// The pod's namespace uses as much of the node as it may.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// S3 cannot be reached, and what was read before cannot be shown either.
    #[error("{error}; and nothing can be shown from before (whenUnavailable: cached): {why}")]
    NotCached {
        /// Why S3 cannot be reached.
        error: Box<NodeError>,
        /// Why nothing can be shown from before.
        why: Arc<str>,
    },
    /// The target is published with other arguments.
    #[error("the target path is published already, with other arguments: {difference}")]
    Incompatible {
        /// What differs.
        difference: String,
    },
    /// One of two volumes would be mounted over the other, or in it.
    #[error(
        "target_path {}: must be neither above nor below {}, where another volume is published; \
         give each volume a directory of its own",
        target.display(), other.display()
    )]
    Nested {
        /// Where to publish.
        target: PathBuf,
        /// Where the other volume is.
        other: PathBuf,
    },
    /// No such volume is published at that path.
    #[error("volume {volume_id:?} is not published at {target:?}")]
    NotPublished {
        /// The volume.
        volume_id: String,
        /// The path.
        target: String,
    },
    /// An unpublish of the same target is under way.
    #[error("an unpublish of this target path is under way; publish again when it is done")]
    Busy,
    /// The caller's time is nearly over; the work goes on.
    #[error("the volume is not ready yet: {progress}; the work goes on, publish again to join it")]
    Deadline {
        /// How far it has come.
        progress: String,
    },
    /// An unpublish ended the work.
    #[error("the publish was cancelled by an unpublish of the same target path")]
    Cancelled,
    /// Nobody has asked for the volume for ten minutes.
    #[error("nobody asked for this volume for 10 minutes; publish again")]
    Forgotten,
    /// A defect of ours ended the work; its message is in the log.
    #[error("the publish ended by a defect of s3view; the node plugin's log says where")]
    Panicked,
    /// The plugin is ending.
    #[error("the node plugin is shutting down; publish again when it is back")]
    ShuttingDown,
}

impl NodeError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Invalid(_) | Self::Nested { .. } => FailureKind::Invalid,
            Self::Spec(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Resolve(error) => error.kind(),
            Self::Fetch(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::View(error) => error.kind(),
            Self::Fuse(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Registry { error, .. } | Self::Ledger { error, .. } => {
                crate::store::io_kind(error)
            }
            Self::TooLarge { .. } | Self::OverLimit(_) => FailureKind::Exhausted,
            Self::NotCached { error, .. } => error.kind(),
            Self::Incompatible { .. } => FailureKind::Incompatible,
            Self::NotPublished { .. } => FailureKind::NotFound,
            Self::Busy => FailureKind::Busy,
            Self::Deadline { .. } => FailureKind::Deadline,
            Self::Cancelled => FailureKind::Cancelled,
            Self::Forgotten | Self::ShuttingDown => FailureKind::Unavailable,
            Self::Panicked => FailureKind::Internal,
        }
    }
}

impl NodeError {
    /// A directory of a FUSE view that could not be made.
    pub(super) fn ledger(path: &Path, error: std::io::Error) -> Self {
        Self::Ledger { path: path.to_owned(), error: Arc::new(error) }
    }

    /// Whether room on a medium would help. (A volume that is larger than it may be wants none.)
    pub(super) fn wants_room(&self) -> bool {
        match self {
            Self::Store(error) | Self::Fetch(FetchError::Store(error)) => error.wants_room(),
            Self::View(error) => error.wants_room(),
            _ => false,
        }
    }
}

impl From<Problems> for NodeError {
    fn from(problems: Problems) -> Self {
        Self::Invalid(Arc::new(problems))
    }
}

impl From<SpecError> for NodeError {
    fn from(error: SpecError) -> Self {
        Self::Spec(Arc::new(error))
    }
}

impl From<MountError> for NodeError {
    fn from(error: MountError) -> Self {
        Self::Mount(Arc::new(error))
    }
}

impl From<FuseError> for NodeError {
    fn from(error: FuseError) -> Self {
        Self::Fuse(Arc::new(error))
    }
}

impl From<ViewError> for NodeError {
    fn from(error: ViewError) -> Self {
        Self::View(Arc::new(error))
    }
}
