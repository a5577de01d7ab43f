//! The state of an entry: a sealed memfd whose content only plugins read.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    io::Errno,
};
use thiserror::Error;

use super::MAX_STATE;
use crate::failure::FailureKind;

/// With these nobody can change content or size any more, nor the seals.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Opaque bytes that go with a descriptor; final once made. Not for secrets: it may reach swap.
#[derive(Debug)]
pub struct State {
    file: File,
    length: u64,
}

/// A descriptor or content that is no state.
#[derive(Debug, Error)]
pub enum StateError {
    /// Its content could still change.
    #[error("a state must be a memfd with seals on its size, content and seals")]
    NotSealed,
    /// It is too large.
    #[error("a state must have at most {MAX_STATE} bytes, and this one has {0}")]
    TooLarge(u64),
    /// The system refused.
    #[error("failed to access a state")]
    Io(#[from] io::Error),
}

impl StateError {
    /// `Invalid` for a wrong descriptor, `Exhausted` for too many bytes, `Internal` for the system.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::NotSealed => FailureKind::Invalid,
            Self::TooLarge(_) => FailureKind::Exhausted,
            Self::Io(_) => FailureKind::Internal,
        }
    }
}

impl State {
    /// A state with this content.
    ///
    /// # Errors
    /// More than [`MAX_STATE`] bytes, no memory, no descriptor.
    ///
    /// # Blocking
    /// Copies the content once, in memory.
    pub fn new(content: &[u8]) -> Result<Self, StateError> {
        let length = content.len() as u64;
        if length > MAX_STATE {
            return Err(StateError::TooLarge(length));
        }
        let mut file = File::from(unsealed()?);
        file.write_all(content)?;
        fcntl_add_seals(&file, SEALS).map_err(io::Error::from)?;
        Ok(Self { file, length })
    }

    /// The state that a peer sent.
    ///
    /// # Errors
    /// The descriptor is no sealed memfd, or its content too large.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, StateError> {
        // EINVAL: the file knows no seals.
        let seals = fcntl_get_seals(&fd).map_err(|_| StateError::NotSealed)?;
        if !seals.contains(SEALS) {
            return Err(StateError::NotSealed);
        }
        let file = File::from(fd);
        let length = file.metadata()?.len();
        if length > MAX_STATE {
            return Err(StateError::TooLarge(length));
        }
        Ok(Self { file, length })
    }

    /// How many bytes it has.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Its whole content. The place of the descriptor, which duplicates share, is not used.
    ///
    /// # Errors
    /// What pread(2) answers.
    ///
    /// # Blocking
    /// Copies the content once, in memory.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.length).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        self.file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }
}

impl AsFd for State {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `MFD_NOEXEC_SEAL`: with `vm.memfd_noexec=2` there is no other. Linux before 6.3 does not know it.
fn unsealed() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(c"s3view-state", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(memfd_create(c"s3view-state", flags)?),
        made => Ok(made?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_what_it_was_made_of_and_final() {
        for content in [&b""[..], b"inodes"] {
            let state = State::new(content).unwrap();
            assert_eq!(state.read().unwrap(), content);
            assert!(state.file.write_at(b"x", 0).is_err());
            assert!(state.file.set_len(100).is_err());
            let again = State::adopt(state.as_fd().try_clone_to_owned().unwrap()).unwrap();
            assert_eq!(again.length(), content.len() as u64);
            assert_eq!(again.read().unwrap(), content);
        }
    }

    #[test]
    fn what_could_change_is_no_state() {
        let unsealed = unsealed().unwrap();
        assert!(matches!(State::adopt(unsealed), Err(StateError::NotSealed)));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(State::adopt(file.into()), Err(StateError::NotSealed)));
    }

    #[test]
    fn a_sparse_giant_is_no_state() {
        let file = File::from(unsealed().unwrap());
        file.set_len(MAX_STATE + 1).unwrap();
        fcntl_add_seals(&file, SEALS).unwrap();
        assert!(matches!(State::adopt(file.into()), Err(StateError::TooLarge(_))));
    }
}
