//! Bodies on their way out: slowed down to the bandwidth, cut or damaged by a fault.
//!
//! A body that nothing happens to passes through untouched.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body_util::{Either, StreamBody};
use hyper::body::{Body as _, Frame};
use parking_lot::Mutex;
use s3s::{Body, StdError};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

/// How long the bytes before a cut get to leave the process: a reset discards what waits.
const FLUSH: Duration = Duration::from_millis(50);

/// How far a connection that was idle may run ahead.
const BURST: Duration = Duration::from_millis(10);

/// The body of an answer.
pub(crate) type WireBody = Either<Body, StreamBody<BoxStream<'static, FrameResult>>>;

type FrameResult = Result<Frame<Bytes>, StdError>;

/// What a fault does to a body.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Damage {
    /// The body ends after so many bytes.
    Cut(u64, End),
    /// The first byte is flipped.
    Corrupt,
}

/// How a cut body ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// The connection is closed.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing happens any more.
    Stall,
}

/// What happens to one body.
pub(crate) struct Shape {
    /// What a fault does to it.
    pub(crate) damage: Option<Damage>,
    /// The bandwidth it shares.
    pub(crate) throttle: Option<Arc<Throttle>>,
    /// Notified to reset the connection.
    pub(crate) line: Arc<Notify>,
}

impl Shape {
    /// The response in this shape. Its Content-Length stays that of the whole body.
    pub(crate) fn apply(self, mut response: Response<Body>) -> Response<WireBody> {
        if self.damage.is_none() && self.throttle.is_none() {
            return response.map(Either::Left);
        }
        let length = response.body().size_hint().exact().filter(|length| *length > 0);
        if let Some(length) = length {
            response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        response.map(|body| self.pour(body))
    }

    fn pour(self, body: Body) -> WireBody {
        let chunks = stream::unfold((self, body, 0), async |(shape, mut body, sent)| {
            let chunk = match shape.next(&mut body, sent).await? {
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(error), (shape, Body::empty(), sent))),
            };
            let sent = sent + chunk.len() as u64;
            Some((Ok(Frame::data(chunk)), (shape, body, sent)))
        });
        Either::Right(StreamBody::new(chunks.boxed()))
    }

    async fn next(&self, body: &mut Body, sent: u64) -> Option<Result<Bytes, StdError>> {
        let mut chunk = match body.next().await? {
            Ok(chunk) => chunk,
            error @ Err(_) => return Some(error),
        };
        match self.damage {
            Some(Damage::Cut(limit, end)) if sent + chunk.len() as u64 > limit => {
                let left = usize::try_from(limit - sent).expect("less than the chunk");
                if left == 0 {
                    return Some(Err(self.end(end).await));
                }
                *body = Body::from(chunk.split_off(left));
            }
            Some(Damage::Corrupt) if sent == 0 => chunk = flipped(&chunk),
            _ => {}
        }
        if let Some(throttle) = &self.throttle {
            throttle.take(chunk.len()).await;
        }
        Some(Ok(chunk))
    }

    /// Ends the connection; returns the error that makes hyper close it.
    async fn end(&self, end: End) -> StdError {
        match end {
            End::Stall => std::future::pending().await,
            End::Close => sleep(FLUSH).await,
            End::Reset => {
                sleep(FLUSH).await;
                self.line.notify_one();
                std::future::pending::<()>().await;
            }
        }
        "the body is cut here".into()
    }
}

fn flipped(chunk: &[u8]) -> Bytes {
    let mut chunk = BytesMut::from(chunk);
    if let Some(first) = chunk.first_mut() {
        *first ^= 1;
    }
    chunk.freeze()
}

/// A bandwidth that all connections share: a clock of when the bytes so far are due.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    due: Mutex<Instant>,
}

impl Throttle {
    /// A bandwidth of so many bytes per second, at least one.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), due: Mutex::new(Instant::now()) }
    }

    async fn take(&self, bytes: usize) {
        let nanos = bytes as u64 * 1_000_000_000 / self.bytes_per_second;
        let due = {
            let mut due = self.due.lock();
            *due = (*due).max(Instant::now() - BURST) + Duration::from_nanos(nanos);
            *due
        };
        sleep_until(due).await;
    }
}
