//! What can go wrong on either side of the socket.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::{
    frame::{Malformed, Refusal, Versions},
    state::StateError,
};
use crate::{failure::FailureKind, socket::BindError};

/// Why the keeper cannot run.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// The socket's directory is open to others.
    #[error("the directory {} of the socket must have mode 0700 and be {owner}'s own: {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The user id that it should have.
        owner: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory cannot be made or looked at.
    #[error("failed to prepare the directory {} of the socket", path.display())]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// Waiting failed.
    #[error("failed to wait for connections")]
    Wait(#[source] io::Error),
}

impl KeeperError {
    /// `Busy` where another keeper answers, `Precondition` where the surroundings are wrong.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Directory { .. } | Self::Prepare { .. } => FailureKind::Precondition,
            Self::Socket(error) => error.kind(),
            Self::Wait(_) => FailureKind::Internal,
        }
    }
}

/// Why a plugin's request was not done.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("failed to connect to the keeper at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Somebody else listens there.
    #[error("the keeper runs as user {0}, who is neither root nor this process's")]
    Foreign(u32),
    /// There is no version that both speak.
    #[error("the keeper speaks {keeper} of the protocol, and this plugin {plugin}")]
    Versions {
        /// What the keeper speaks.
        keeper: Versions,
        /// What this build speaks.
        plugin: Versions,
    },
    /// The keeper said no, in its own words.
    #[error("the keeper refused: {text}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// Likewise, for people.
        text: String,
    },
    /// The keeper's answer makes no sense.
    #[error("failed to understand the keeper")]
    Malformed(#[from] Malformed),
    /// The keeper sent something else than the state that it was given.
    #[error("failed to take over a state")]
    State(#[from] StateError),
    /// The connection broke, or the keeper did not answer in time.
    #[error("lost the connection to the keeper")]
    Lost(#[source] io::Error),
}

impl ClientError {
    /// `Unavailable` where trying again may help, `Busy` while another plugin is connected.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Connect { .. } | Self::Lost(_) => FailureKind::Unavailable,
            Self::Foreign(_) => FailureKind::Denied,
            Self::Versions { .. } => FailureKind::Incompatible,
            Self::Malformed(_) => FailureKind::Internal,
            Self::State(error) => error.kind(),
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Busy => FailureKind::Busy,
                Refusal::Denied => FailureKind::Denied,
                Refusal::Version => FailureKind::Incompatible,
                Refusal::Unknown => FailureKind::NotFound,
                Refusal::Full => FailureKind::Exhausted,
                Refusal::State => FailureKind::Invalid,
                Refusal::Malformed | Refusal::Other(_) => FailureKind::Internal,
            },
        }
    }

    /// Whether the connection is of no more use: connect anew.
    pub const fn ends_connection(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => {
                matches!(refusal, Refusal::Malformed | Refusal::Other(_))
            }
            Self::State(_) => false,
            Self::Connect { .. }
            | Self::Foreign(_)
            | Self::Versions { .. }
            | Self::Malformed(_)
            | Self::Lost(_) => true,
        }
    }
}
