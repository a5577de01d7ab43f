//! An object's content on its way from S3: bounded in time, checked against what was asked for.

use std::{ops::Range, sync::Arc, time::Duration};

use aws_sdk_s3::{
    operation::{get_object::GetObjectOutput, head_object::HeadObjectOutput},
    primitives::ByteStream,
    types::{ChecksumType, ServerSideEncryption},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::What;
use crate::{
    failure::{FailureKind, full_message},
    object::{ETag, Object},
    source::{SourceError, bound::Permit},
    telemetry::metrics::Metrics,
};

/// How long a body may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Between two chunks.
    pub(super) stall: Duration,
    /// From the first byte to the last.
    pub(super) total: Duration,
}

/// The content of an object or of a range of it, as a stream of chunks.
///
/// Ends successfully only after exactly the expected number of bytes. Holds one of the node's
/// request permits until it is dropped.
#[derive(Debug)]
pub struct Body {
    stream: ByteStream,
    remaining: u64,
    stall: Duration,
    deadline: Instant,
    etag_is_md5: bool,
    held: Option<Held>,
}

/// What a body has of its request.
#[derive(Debug)]
struct Held {
    _permit: Permit,
    metrics: Arc<Metrics>,
    what: What,
}

/// A checksum over a whole object, as the service keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// How it was computed.
    pub algorithm: ChecksumAlgorithm,
    /// Its bytes, big-endian for the CRCs.
    pub value: Vec<u8>,
}

/// The checksums that we can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// CRC-64/NVME.
    Crc64Nvme,
    /// CRC-32/ISCSI.
    Crc32c,
    /// CRC-32/ISO-HDLC.
    Crc32,
    /// SHA-256.
    Sha256,
}

impl Checksum {
    /// The best checksum over the whole object in a HEAD answer. A composite one (a checksum of
    /// the parts' checksums) says nothing without the parts' boundaries, so it does not count.
    pub(super) fn of_head(output: &HeadObjectOutput) -> Option<Self> {
        if output.checksum_type() == Some(&ChecksumType::Composite) {
            return None;
        }
        [
            (ChecksumAlgorithm::Crc64Nvme, output.checksum_crc64_nvme()),
            (ChecksumAlgorithm::Crc32c, output.checksum_crc32_c()),
            (ChecksumAlgorithm::Crc32, output.checksum_crc32()),
            (ChecksumAlgorithm::Sha256, output.checksum_sha256()),
        ]
        .into_iter()
        .find_map(|(algorithm, text)| {
            let value = STANDARD.decode(text?).ok()?;
            Some(Self { algorithm, value })
        })
    }
}

/// Checks the head of an answer against what was asked for.
pub(super) fn open(
    output: GetObjectOutput,
    object: &Object,
    range: Option<&Range<u64>>,
    limits: Limits,
) -> Result<Body, (FailureKind, String)> {
    let size = object.version.size;
    if output.e_tag().is_some_and(|etag| ETag::new(etag) != object.version.etag) {
        return Err((FailureKind::Stale, "the object changed while it was read".into()));
    }
    let expected = match range {
        None => size,
        Some(range) => {
            let wanted = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            if output.content_range() != Some(&wanted) {
                let got = output.content_range().unwrap_or("the whole object");
                let text = format!("asked for {wanted:?}, and the endpoint sent {got:?}");
                return Err((FailureKind::Corrupt, text));
            }
            range.end - range.start
        }
    };
    let length = output.content_length().and_then(|length| u64::try_from(length).ok());
    if length.is_some_and(|length| length != expected) {
        let text = format!("expected {expected} bytes, and the endpoint announces {length:?}");
        return Err((FailureKind::Corrupt, text));
    }
    Ok(Body {
        etag_is_md5: etag_is_md5(&output, object),
        stream: output.body,
        remaining: expected,
        stall: limits.stall,
        deadline: Instant::now() + limits.total,
        held: None,
    })
}

/// Whether the ETag is the content's MD5: it is for objects uploaded in one piece, unless they are
/// encrypted with KMS or customer keys. Source: Amazon S3 API reference, "Object".
fn etag_is_md5(output: &GetObjectOutput, object: &Object) -> bool {
    let kms = matches!(
        output.server_side_encryption(),
        Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse)
    );
    object.version.etag.md5().is_some() && !kms && output.sse_customer_algorithm().is_none()
}

impl Body {
    pub(super) fn held(self, permit: Permit, metrics: Arc<Metrics>, what: What) -> Self {
        Self { held: Some(Held { _permit: permit, metrics, what }), ..self }
    }

    /// Whether the object's ETag is the MD5 of its content.
    pub fn etag_is_md5(&self) -> bool {
        self.etag_is_md5
    }

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// `Unavailable` if the connection broke, stalled or took too long; `Corrupt` if there were
    /// fewer or more bytes than promised, or the SDK's own checksum did not match.
    ///
    /// # Cancellation
    /// Safe; the chunk is not lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let limit = self.deadline.min(Instant::now() + self.stall);
        let chunk = match timeout_at(limit, self.stream.next()).await {
            Err(_) => return Err(self.failed(FailureKind::Unavailable, self.overdue())),
            Ok(Some(Err(error))) => {
                return Err(self.broken(&full_message(&error)));
            }
            Ok(Some(Ok(chunk))) => chunk,
            Ok(None) if self.remaining == 0 => return Ok(None),
            Ok(None) => {
                let text = format!("the body ended {} bytes early", self.remaining);
                return Err(self.failed(FailureKind::Unavailable, &text));
            }
        };
        let Some(remaining) = self.remaining.checked_sub(chunk.len() as u64) else {
            return Err(self.failed(FailureKind::Corrupt, "the body is longer than announced"));
        };
        self.remaining = remaining;
        if let Some(Held { metrics, .. }) = &self.held {
            metrics.s3_received_bytes.inc_by(chunk.len() as u64);
        }
        Ok(Some(chunk))
    }

    /// Which of the two limits has passed.
    fn overdue(&self) -> &'static str {
        if Instant::now() < self.deadline {
            "the body stalled; it will be tried again"
        } else {
            "the body takes too long; raise timeouts.total of the endpoint, or lower fetch.partSize"
        }
    }

    /// The SDK checks a whole object's checksum as it streams, and tells only by its text.
    fn broken(&self, text: &str) -> SourceError {
        let corrupt = text.contains("checksum");
        let kind = if corrupt { FailureKind::Corrupt } else { FailureKind::Unavailable };
        self.failed(kind, &format!("the body broke off: {text}"))
    }

    fn failed(&self, kind: FailureKind, problem: &str) -> SourceError {
        let Some(Held { metrics, what, .. }) = &self.held else {
            return SourceError::new(kind, problem);
        };
        metrics.s3_errors.with_label_values(&["GetObject", kind.as_str()]).inc();
        SourceError::new(kind, format!("{what}: {problem}"))
    }
}
