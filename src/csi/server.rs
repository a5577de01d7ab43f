//! The CSI socket: made so that nobody else can ever open it, and served until told to stop.

use std::{
    future::Future,
    io,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use http::{HeaderValue, Response};
use nix::sys::{
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    stat::{Mode, fchmod},
};
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tonic::{body::Body, transport::Server};
use tower::util::MapResponseLayer;

use super::{
    IdentityService, NodeService,
    proto::{identity_server::IdentityServer, node_server::NodeServer},
};

/// Why the socket cannot be made.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another process answers on it.
    #[error("another process answers on {}; stop it, or use another endpoint", .0.display())]
    Live(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket; remove it, or use another endpoint", .0.display())]
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

/// Why serving ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The socket cannot be used by the runtime.
    #[error("failed to listen on the CSI socket")]
    Listen(#[source] io::Error),
    /// The gRPC transport failed.
    #[error("failed to serve the CSI socket")]
    Transport(#[from] tonic::transport::Error),
}

/// A bound CSI socket of mode 0600.
#[derive(Debug)]
pub struct Socket {
    listener: StdListener,
}

impl Socket {
    /// Binds `path`, replacing the socket of a process that is gone.
    ///
    /// The mode is set before the name exists, so there is no moment at which others may connect.
    /// No other file is made beside the socket.
    ///
    /// # Errors
    /// See [`BindError`].
    ///
    /// # Blocking
    /// A few system calls.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        remove_stale(path)?;
        let failed = |error: io::Error| BindError::Io { path: path.to_owned(), error };
        let bound = || -> io::Result<StdListener> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
            bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
            listen(&fd, Backlog::MAXCONN)?;
            Ok(fd.into())
        };
        Ok(Self { listener: bound().map_err(failed)? })
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
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
    match StdStream::connect(path) {
        Ok(_) => Err(BindError::Live(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Answers on the socket until `stop` completes, then finishes what runs.
///
/// Services that this process does not have, and RPCs that they do not offer, answer UNIMPLEMENTED.
///
/// # Errors
/// The transport's.
pub async fn serve(
    socket: Socket,
    identity: IdentityService,
    node: NodeService,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let listener = UnixListener::from_std(socket.listener).map_err(ServeError::Listen)?;
    Server::builder()
        .layer(MapResponseLayer::new(explained))
        .add_service(IdentityServer::new(identity))
        .add_service(NodeServer::new(node))
        .serve_with_incoming_shutdown(connections(listener), stop)
        .await?;
    Ok(())
}

/// Gives words to a bare UNIMPLEMENTED, the transport's answer for services that are not here: CSI
/// wants a message with every failure.
fn explained(mut response: Response<Body>) -> Response<Body> {
    const MESSAGE: HeaderValue = HeaderValue::from_static("not offered by this process");
    let headers = response.headers_mut();
    let is_bare = |message: Option<&HeaderValue>| message.is_none_or(HeaderValue::is_empty);
    let is_unimplemented = headers.get("grpc-status").is_some_and(|status| status == "12");
    if is_unimplemented && is_bare(headers.get("grpc-message")) {
        headers.insert("grpc-message", MESSAGE);
    }
    response
}

/// How long to wait after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket's connections, without end.
///
/// An error of accept(2) is one of the moment: there are no descriptors, or whoever connected is
/// gone. The transport would try again at once, and for want of descriptors fail again at once: a
/// loop that takes a processor while it lasts.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async move {
        let mut told = false;
        loop {
            match listener.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), listener)),
                Err(error) => {
                    // One line for a bad time, not ten a second.
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "failed to accept a connection; trying again");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_socket_is_private_from_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        let _socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        drop(Socket::bind(&path).unwrap());
        let _live = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::Live(_))));
    }

    #[test]
    fn a_file_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("csi.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
