//! The wire: the listening port, connections, and faults on them.
//!
//! While the server is down nothing listens, so that connections are refused as they are by a dead
//! server, yet the port stays ours: a second socket, bound to it and never listening, keeps every
//! other process from getting it.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use s3s::Body;
use s3s::service::S3Service;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::body::{Damage, End, Shape, Throttle, WireBody};
use super::calls::{Call, Recorder};
use super::content::Content;
use super::faults::{Action, Faults};
use super::store::{Object, Properties, Store};

/// Everything a connection needs.
pub(crate) struct Site {
    /// The S3 API.
    pub(crate) service: S3Service,
    /// The objects, for faults that change them.
    pub(crate) store: Arc<Store>,
    /// What goes wrong.
    pub(crate) faults: Faults,
    /// What was asked.
    pub(crate) recorder: Recorder,
    /// The bandwidth, if it is limited.
    pub(crate) throttle: Option<Arc<Throttle>>,
    /// How long every request waits.
    pub(crate) latency: Mutex<Duration>,
    /// Whether the server plays dead.
    pub(crate) is_down: AtomicBool,
}

impl Site {
    async fn answer(&self, request: Request<Incoming>, line: &Arc<Notify>) -> Response<WireBody> {
        let call = Arc::new(Call::of(&request));
        self.recorder.arrived(&call);
        let verdict = self.faults.decide(&call);
        let wait = verdict.delay + *self.latency.lock();
        if !wait.is_zero() {
            sleep(wait).await;
        }
        if self.is_down.load(Ordering::Acquire) || matches!(verdict.action, Some(Action::Reset)) {
            self.recorder.answered(call, None);
            line.notify_one();
            return std::future::pending().await;
        }
        let (response, damage) = self.carry_out(verdict.action, &call, request).await;
        self.recorder.answered(call, Some(response.status().as_u16()));
        let shape = Shape { damage, throttle: self.throttle.clone(), line: Arc::clone(line) };
        shape.apply(response)
    }

    async fn carry_out(
        &self,
        action: Option<Action>,
        call: &Arc<Call>,
        mut request: Request<Incoming>,
    ) -> (Response<Body>, Option<Damage>) {
        let damage = match action {
            Some(Action::Status(status, code)) => return (error(status, code), None),
            Some(Action::ChangeETag) => {
                self.change(&call.bucket, &call.key);
                None
            }
            Some(Action::ResetAfter(n)) => Some(Damage::Cut(n, End::Reset)),
            Some(Action::Truncate(n)) => Some(Damage::Cut(n, End::Close)),
            Some(Action::Stall(n)) => Some(Damage::Cut(n, End::Stall)),
            Some(Action::Corrupt) => Some(Damage::Corrupt),
            Some(Action::Delay(_) | Action::Reset) | None => None,
        };
        request.extensions_mut().insert(Arc::clone(call));
        let response = self.service.call(request.map(Body::from)).await;
        let failed = |_| error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        (response.unwrap_or_else(failed), damage)
    }

    /// Overwrites an object with other content; nothing happens if there is none.
    fn change(&self, bucket: &str, key: &str) {
        if let Ok(found) = self.store.find(bucket, key, None) {
            let changed = format!("changed after {}\n", found.object.etag);
            let content = Content::Whole(changed.into());
            let checksum = content.default_checksum();
            let object = Object::single(content, checksum, Properties::default());
            self.store.put(bucket, key, object).expect("the bucket was there a moment ago");
        }
    }
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
    let mut response = Response::new(Body::from(Bytes::from(text)));
    *response.status_mut() = status;
    let xml = HeaderValue::from_static("application/xml");
    *response.headers_mut() = HeaderMap::from_iter([(http::header::CONTENT_TYPE, xml)]);
    response
}

/// Tells the port to close or to open again.
pub(crate) struct Switch {
    /// Whether to close.
    pub(crate) down: bool,
    /// Hears when it is so.
    pub(crate) done: std::sync::mpsc::Sender<()>,
}

/// A TCP port of the loopback interface that can stop listening without being lost.
pub(crate) struct Port {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    _reserved: TcpSocket,
}

impl Port {
    /// Reserves a free port.
    pub(crate) fn reserve() -> io::Result<Self> {
        let reserved = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self { address: reserved.local_addr()?, _reserved: reserved })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A period in which the port is open; its connections are reset when it is dropped.
pub(crate) struct Opening {
    address: SocketAddr,
    listener: TcpListener,
    period: CancellationToken,
    _end: DropGuard,
}

impl Opening {
    /// Begins to listen. Must be called in a runtime.
    pub(crate) fn at(address: SocketAddr) -> io::Result<Self> {
        let listener = bind(address)?.listen(4096)?;
        let period = CancellationToken::new();
        Ok(Self { address, listener, _end: period.clone().drop_guard(), period })
    }

    async fn accept(opening: Option<&Self>) -> Option<(TcpStream, CancellationToken)> {
        let Some(opening) = opening else { return std::future::pending().await };
        let (stream, _) = opening.listener.accept().await.ok()?;
        Some((stream, opening.period.clone()))
    }
}

/// Serves connections until the sender of `switches` is gone.
pub(crate) async fn serve(
    site: Arc<Site>,
    opening: Opening,
    mut switches: mpsc::UnboundedReceiver<Switch>,
) {
    let address = opening.address;
    let connections = TaskTracker::new();
    let mut opening = Some(opening);
    loop {
        tokio::select! {
            switch = switches.recv() => {
                let Some(Switch { down, done }) = switch else { return };
                // Closes before it opens: `false` twice must not listen twice.
                drop(opening.take());
                opening = (!down).then(|| Opening::at(address).expect("the port is reserved"));
                drop(done);
            }
            accepted = Opening::accept(opening.as_ref()) => {
                if let Some((stream, period)) = accepted {
                    connections.spawn(converse(Arc::clone(&site), stream, period));
                }
            }
        }
    }
}

/// The service of one connection.
struct Conversation {
    site: Arc<Site>,
    line: Arc<Notify>,
}

impl Service<Request<Incoming>> for Conversation {
    type Response = Response<WireBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (site, line) = (Arc::clone(&self.site), Arc::clone(&self.line));
        Box::pin(async move { Ok(site.answer(request, &line).await) })
    }
}

/// Serves one connection until either side closes it, a fault resets it, or the period ends.
async fn converse(site: Arc<Site>, stream: TcpStream, period: CancellationToken) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let line = Arc::new(Notify::new());
    let service = Conversation { site, line: Arc::clone(&line) };
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        () = line.notified() => {}
        () = period.cancelled() => {}
        // A client that goes away is no event.
        _ = &mut connection => return,
    }
    // Without lingering, dropping the stream sends RST. Where that fails the client sees FIN.
    let stream = connection.into_parts().io.into_inner();
    drop(stream.set_zero_linger());
}
