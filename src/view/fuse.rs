//! The `fuse` view: a listing as plain files whose content is fetched when it is read.
//!
//! This is the half that faces the kernel. It knows names, attributes and who has what open; where
//! bytes come from is behind [`Content`]. Its rules:
//!
//! - **The kernel remembers everything and is told what changed.** Names and attributes may be kept
//!   for ever, that a name is missing never; after a swap the kernel is told what to forget.
//! - **An inode number stands for one path with one object version**, or for a directory at one path,
//!   and is never given out again. So what is cached for a number stays right for ever.
//! - **A swap is one assignment.** Every lookup after it sees the new listing. An open file keeps its
//!   version, and an open directory its listing until it is rewound.
//! - **ENOENT** is the answer for a name that a directory of the listing does not have; **ESTALE**
//!   for a number that neither the listing nor an open file has. The kernel then walks a path once
//!   more from the start, so a process sees ESTALE only through a descriptor, or a working directory,
//!   of something that is gone; and from reads, when an object changed under an open file.
//! - **A session's threads never wait**: reads that are not answered at once go on as tasks.
//! - **Every open asks for no FLUSH**, which otherwise makes `close(2)` wait for this process. Where
//!   all files are small there are no opens: the kernel opens by itself what it knows (unasked.rs).
//!
//! The mount is made by `mount` with a descriptor of ours, so that ending a session unmounts nothing
//! and other processes can keep the connection alive. What one needs to go on with it stands in files
//! of the mount's own, the *ledger*, at every moment: a process is never asked to leave.

mod adapter;
#[expect(unsafe_code, reason = "to answer with a number that the library did not make")]
mod backing;
mod build;
mod changes;
mod directories;
mod errno;
mod handles;
mod handover;
mod journal;
mod ledger;
mod notice;
mod numbers;
mod opens;
mod place;
mod relay;
mod resume;
mod served;
mod session;
mod siblings;
mod table;
#[expect(unsafe_code, reason = "to store requests where they stay when the process ends")]
mod taken;
mod unasked;

use std::{error::Error, fmt, fs::File, io::ErrorKind, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use thiserror::Error;

pub use self::{
    numbers::BadNumbers,
    place::LedgerPlace,
    resume::ResumeError,
    session::{AskToOpen, FuseMount, FuseOptions, InFlight, Negotiated},
    siblings::Siblings,
    unasked::Hold,
};
use crate::{failure::FailureKind, mount::MountError, object::Object};

/// Where the bytes of a volume come from.
pub trait Content: fmt::Debug + Send + Sync + 'static {
    /// Told of a file that was just opened and stands in the listing, and of what stands beside it:
    /// it may be worth fetching. `is_here` if all of the file is.
    ///
    /// # Blocking
    /// As [`Content::open`].
    fn beside(&self, _siblings: &Siblings<'_>, _is_here: bool) {}

    /// Opens an object for one handle. No bytes are needed yet.
    ///
    /// # Errors
    /// Why it cannot be read; the open fails.
    ///
    /// # Blocking
    /// Must not: it is called on a thread that serves the whole volume. Within a runtime.
    fn open(&self, object: &Object) -> Result<Arc<dyn OpenFile>, Refusal>;
}

/// One open file.
pub trait OpenFile: fmt::Debug + Send + Sync + 'static {
    /// Reads exactly `size` bytes at `offset`; both lie within the object.
    ///
    /// # Errors
    /// Why there are no such bytes; the read fails.
    ///
    /// # Blocking
    /// Neither the call nor the first poll may, since both are made on a thread that serves the
    /// whole volume. The rest is a task. All within a runtime.
    ///
    /// # Cancellation
    /// Dropped when the volume is closed.
    fn read(&self, offset: u64, size: u32) -> BoxFuture<'static, Result<Bytes, Refusal>>;

    /// The file that holds exactly the object's bytes, once it is complete: the kernel may read it
    /// without asking again. Asked at open.
    fn whole(&self) -> Option<Arc<File>>;

    /// What keeps the content where it is after this was dropped, without an open file; `None` if
    /// it is not complete. Asked when it was read.
    fn hold(&self) -> Option<Hold> {
        None
    }
}

/// Why content cannot be read.
#[derive(Debug, Error)]
#[error("{text}")]
pub struct Refusal {
    kind: FailureKind,
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Refusal {
    /// A refusal that is explained by its text alone.
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    /// A refusal that another error explains.
    pub fn because(kind: FailureKind, source: impl Error + Send + Sync + 'static) -> Self {
        let text = "failed to read an object".to_owned();
        Self { kind, text, source: Some(source.into()) }
    }

    /// The kind of this failure, from which the errno follows.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}

/// Why a volume is not served.
#[derive(Debug, Error)]
pub enum FuseError {
    /// The mount could not be made.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The kernel and this process did not come to terms.
    #[error("failed to {action} the FUSE session")]
    Session {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// What another process needs to go on could not be written.
    #[error("failed to write down what is needed to go on with a FUSE mount after a restart")]
    Ledger(#[source] std::io::Error),
}

impl FuseError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Mount(error) => error.kind(),
            Self::Ledger(error) if error.kind() == ErrorKind::StorageFull => FailureKind::Exhausted,
            Self::Session { .. } | Self::Ledger(_) => FailureKind::Internal,
        }
    }
}

#[cfg(test)]
mod tests;
