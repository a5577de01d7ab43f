//! Why a volume cannot be created.

use thiserror::Error;

use crate::{failure::FailureKind, problems::Problems, source::SourceError, volume::SpecError};

/// A volume that is not created. Nothing is left of it, so nothing has to be asked for again.
#[derive(Debug, Clone, Error)]
pub enum ControllerError {
    /// Parameters or Secret are wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The parameters are well formed, and the policy refuses them.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// S3 does not let the provisioner's Secret list what the volume would show.
    #[error("{0} (asked with the provisioner's Secret, or anonymously)")]
    Source(#[from] SourceError),
    /// S3 did not answer in time.
    #[error(
        "{what}: the endpoint did not answer in time; check its URL, and what lies between: proxy, \
         firewall, network policy"
    )]
    Silent {
        /// What was asked.
        what: String,
    },
    /// The name belongs to another volume.
    #[error(
        "a volume of this name was created with other parameters: {difference}; delete its claim \
         first"
    )]
    Incompatible {
        /// What differs.
        difference: String,
    },
}

impl ControllerError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Invalid(_) => FailureKind::Invalid,
            Self::Spec(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Silent { .. } => FailureKind::Unavailable,
            Self::Incompatible { .. } => FailureKind::Incompatible,
        }
    }
}
