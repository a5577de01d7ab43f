//! Unix sockets that only their owner can ever open.
//!
//! The node plugin's CSI socket and the keeper's are made here, in one way: the mode is set before
//! the name exists, so there is no moment at which others may connect; the socket of a process that
//! is gone is replaced; one that answers is left alone, and so is anything that is no socket.
//!
//! Source: unix(7), "Pathname socket ownership and permissions".

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{self as system, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
    stat::{Mode, fchmod},
};
use thiserror::Error;

use crate::failure::FailureKind;

/// What flows through a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes.
    Stream,
    /// Messages, in order, each received whole.
    Messages,
}

/// Why the socket cannot be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process answers on it.
    #[error("another process answers on {}; stop it, or use another socket", .0.display())]
    Live(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket; remove it, or use another socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("failed to make the socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
}

impl BindError {
    /// `Busy` where another process answers, else `Precondition`.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Live(_) => FailureKind::Busy,
            Self::NotASocket(_) | Self::Io { .. } => FailureKind::Precondition,
        }
    }
}

/// A listening socket of mode 0600 at `path`: non-blocking, closed on exec. It replaces the socket
/// of a process that is gone. No other file is made beside it.
///
/// # Errors
/// See [`BindError`].
///
/// # Blocking
/// A few system calls.
pub fn bind(path: &Path, kind: Kind) -> Result<OwnedFd, BindError> {
    remove_stale(path, kind)?;
    let failed = |error: io::Error| BindError::Io { path: path.to_owned(), error };
    let bound = || -> io::Result<OwnedFd> {
        let fd = new(kind)?;
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
        system::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        system::listen(&fd, Backlog::MAXCONN)?;
        Ok(fd)
    };
    bound().map_err(failed)
}

fn new(kind: Kind) -> io::Result<OwnedFd> {
    let kind = match kind {
        Kind::Stream => SockType::Stream,
        Kind::Messages => SockType::SeqPacket,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(system::socket(AddressFamily::Unix, kind, flags, None)?)
}

fn remove_stale(path: &Path, kind: Kind) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |error: io::Error| BindError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let probe = || -> io::Result<()> {
        Ok(system::connect(new(kind)?.as_raw_fd(), &UnixAddr::new(path)?)?)
    };
    match probe() {
        // With a full queue of connections it lives all the same.
        Ok(()) => Err(BindError::Live(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(BindError::Live(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use test_case::test_case;

    use super::*;

    #[test]
    fn the_socket_is_private_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let _socket = bind(&path, Kind::Stream).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test_case(Kind::Stream)]
    #[test_case(Kind::Messages)]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not(kind: Kind) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        drop(bind(&path, kind).unwrap());
        let _live = bind(&path, kind).unwrap();
        assert!(matches!(bind(&path, kind), Err(BindError::Live(_))));
    }

    #[test]
    fn a_file_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path, Kind::Stream), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
