//! The CSI socket, served until told to stop.

use std::{
    future::Future, io, os::unix::net::UnixListener as StdListener, path::Path, time::Duration,
};

use futures::{Stream, stream};
use http::{HeaderValue, Response};
use thiserror::Error;
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tonic::{body::Body, transport::Server};
use tower::util::MapResponseLayer;

use super::{
    ControllerService, IdentityService, NodeService,
    proto::{
        controller_server::ControllerServer, identity_server::IdentityServer,
        node_server::NodeServer,
    },
};
use crate::socket::{self, BindError, Kind};

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

/// What a process answers besides who it is.
#[derive(Debug)]
pub enum Service {
    /// The Node service.
    Node(NodeService),
    /// The Controller service.
    Controller(ControllerService),
}

/// A bound CSI socket of mode 0600.
#[derive(Debug)]
pub struct Socket {
    listener: StdListener,
}

impl Socket {
    /// Binds `path` as [`socket::bind`] does.
    ///
    /// # Errors
    /// See [`BindError`].
    ///
    /// # Blocking
    /// A few system calls.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        Ok(Self { listener: socket::bind(path, Kind::Stream)?.into() })
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
    service: Service,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let listener = UnixListener::from_std(socket.listener).map_err(ServeError::Listen)?;
    let (node, controller) = match service {
        Service::Node(node) => (Some(node), None),
        Service::Controller(controller) => (None, Some(controller)),
    };
    Server::builder()
        .layer(MapResponseLayer::new(explained))
        .add_service(IdentityServer::new(identity))
        .add_optional_service(node.map(NodeServer::new))
        .add_optional_service(controller.map(ControllerServer::new))
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
