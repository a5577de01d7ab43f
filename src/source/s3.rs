//! The S3 requests that s3view makes: list, list versions, head, get. All of the AWS SDK is below
//! this module.
//!
//! One [`S3Source`] is one principal at one endpoint, on behalf of one pod. Every request takes a
//! permit of the node-wide bound first and keeps it until its body has been read. Retries happen
//! here and nowhere else (the SDK's are off), because only here a body that broke off counts as a
//! failure of its request.
//!
//! Source: Amazon S3 API reference: `API_ListObjectsV2`, `API_ListObjectVersions`,
//! `API_GetBucketVersioning`, `API_HeadObject`, `API_GetObject`.

mod agent;
mod body;
mod chain;
mod clients;
mod endpoint;
mod error;
mod guard;
mod handshake;
mod list;
mod mutual;
mod page;
mod sts;
mod temporary;
mod versions;

use std::{fmt, future::Future, ops::Range, sync::Arc, time::Duration};

use aws_sdk_s3::types::{ChecksumMode, RequestPayer};
use backon::{BackoffBuilder, ExponentialBuilder, Retryable};

pub use self::{
    body::{Body, Checksum, ChecksumAlgorithm},
    clients::{Identity, S3Access, S3Clients},
    versions::{HistoryOf, Versioning},
};
use self::{
    clients::{Client, byte_units},
    error::{Asked, explain},
};
use crate::{
    object::{Bucket, EndpointId, Key, Object, SseKeyDigest},
    source::{Principal, SourceError, Transient, bound::Permit},
    telemetry::metrics::Metrics,
    volume::SseCustomerKey,
};

/// One principal's view of one endpoint.
#[derive(Clone)]
pub struct S3Source {
    client: Arc<Client>,
    metrics: Arc<Metrics>,
    agent: Arc<str>,
    sse_key: Option<Arc<SseCustomerKey>>,
    bucket_owner: Option<String>,
    payer: Option<RequestPayer>,
}

impl fmt::Debug for S3Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Source")
            .field("endpoint", self.endpoint())
            .field("principal", &self.principal())
            .finish_non_exhaustive()
    }
}

/// What a HEAD request tells beyond the object itself.
#[derive(Debug, Clone)]
pub struct Head {
    /// The object.
    pub object: Object,
    /// Its checksum over all bytes, where the service keeps one.
    pub checksum: Option<Checksum>,
}

/// The object that a request is about, for errors.
#[derive(Debug)]
struct What {
    endpoint: EndpointId,
    bucket: Bucket,
    key: Key,
    version_id: Option<Arc<str>>,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (endpoint, bucket, key) = (self.endpoint.url(), &self.bucket, &self.key);
        write!(f, "endpoint {endpoint}, bucket {:?}, key {:?}", bucket.as_str(), key.as_str())?;
        self.version_id.iter().try_for_each(|id| write!(f, ", versionId {id:?}"))
    }
}

impl S3Source {
    /// The endpoint that answers.
    pub fn endpoint(&self) -> &EndpointId {
        self.client.endpoint()
    }

    /// Who asks.
    pub fn principal(&self) -> Principal {
        self.client.principal()
    }

    /// Asks for one object's metadata, and for its checksum.
    ///
    /// Needs `s3:GetObject` only (`s3:GetObjectVersion` with a version id).
    ///
    /// # Errors
    /// What S3 answers, naming endpoint, bucket and key. A HEAD answer has no body, so a refusal
    /// is asked for once more with a one-byte GET, which says why.
    pub async fn head(
        &self,
        bucket: &Bucket,
        key: &Key,
        version_id: Option<&Arc<str>>,
    ) -> Result<Head, SourceError> {
        self.retried(|| self.head_once(bucket, key, version_id)).await
    }

    async fn head_once(
        &self,
        bucket: &Bucket,
        key: &Key,
        version_id: Option<&Arc<str>>,
    ) -> Result<Head, SourceError> {
        let what = self.what(bucket, key, version_id);
        let permit = self.permit("HeadObject").await?;
        let mut request = self
            .client
            .sdk()
            .head_object()
            .bucket(bucket.as_str())
            .key(key.as_str())
            .set_version_id(version_id.map(ToString::to_string))
            .checksum_mode(ChecksumMode::Enabled)
            .set_expected_bucket_owner(self.bucket_owner.clone())
            .set_request_payer(self.payer.clone());
        if let Some(sse_key) = &self.sse_key {
            request = request
                .sse_customer_algorithm("AES256")
                .sse_customer_key(sse_key.base64())
                .sse_customer_key_md5(sse_key.base64_md5());
        }
        let answer = self.named(request.send()).await;
        let asked = Asked::of(version_id);
        let answer = answer.map_err(|error| explain(&error, &what.to_string(), asked));
        let outcome = self.counted("HeadObject", answer);
        drop(permit);
        let output = match outcome {
            Ok(output) => output,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => return Err(self.why(bucket, key, version_id).await.unwrap_or(error)),
        };
        page::parse_head(&output, &self.place(bucket), key, version_id)
            .map_err(|problem| page::unusable(&what.to_string(), &problem))
    }

    /// The reason behind a HEAD that was refused; `None` if the GET succeeds after all.
    async fn why(
        &self,
        bucket: &Bucket,
        key: &Key,
        version_id: Option<&Arc<str>>,
    ) -> Option<SourceError> {
        let what = self.what(bucket, key, version_id);
        let _permit = self.permit("GetObject").await.ok()?;
        let request = self.get_request(bucket, key, version_id).range("bytes=0-0");
        let answer = self.named(request.send()).await;
        let asked = Asked::of(version_id);
        let answer = answer.map_err(|error| explain(&error, &what.to_string(), asked));
        self.counted("GetObject", answer).err()
    }

    /// Opens an object's content, or a range of it (start inclusive, end exclusive, not empty).
    ///
    /// Asks with `If-Match` for the ETag that was listed, so that the bytes are those of
    /// `object.version`. Not retried here: see [`S3Source::retried`].
    ///
    /// # Errors
    /// Kind `Stale` if the object is not what was listed any more, else what S3 answers. A version
    /// that was deleted stays `NotFound`: its id is never given to another.
    ///
    /// # Cancellation
    /// Dropping the future or the body ends the request.
    pub async fn get(
        &self,
        object: &Object,
        range: Option<Range<u64>>,
    ) -> Result<Body, SourceError> {
        let version = &object.version;
        let what = self.what(&version.bucket, &version.key, object.version_id.as_ref());
        let permit = self.permit("GetObject").await?;
        let request = self
            .get_request(&version.bucket, &version.key, object.version_id.as_ref())
            .if_match(version.etag.quoted())
            .set_checksum_mode(range.is_none().then_some(ChecksumMode::Enabled))
            .set_range(range.as_ref().map(|r| format!("bytes={}-{}", r.start, r.end - 1)));
        let answer = self.named(request.send()).await;
        let asked = Asked::of(object.version_id.as_ref());
        let answer = answer.map_err(|error| explain(&error, &what.to_string(), asked));
        let answer = answer.map_err(SourceError::stale_if_gone);
        let output = self.counted("GetObject", answer)?;
        let limits = body::Limits {
            stall: self.client.timeouts().stall,
            total: self.client.timeouts().total,
        };
        match body::open(output, object, range.as_ref(), limits) {
            Ok(body) => Ok(body.held(permit, Arc::clone(&self.metrics), what)),
            Err((kind, problem)) => Err(SourceError::new(kind, format!("{what}: {problem}"))),
        }
    }

    /// Asks S3 whether this principal may read an object, as cheaply as that can be had: by one byte
    /// of it. (A conditional answer would not do: it proves no right to decrypt.) Retried.
    ///
    /// # Errors
    /// As [`S3Source::get`].
    ///
    /// # Cancellation
    /// Safe.
    pub async fn prove(&self, object: &Object) -> Result<(), SourceError> {
        self.retried(|| async {
            // No byte of an empty object can be asked for, but all of it.
            let first = (object.version.size > 0).then_some(0..1);
            let mut body = self.get(object, first).await?;
            while body.next().await?.is_some() {}
            Ok(())
        })
        .await
    }

    fn get_request(
        &self,
        bucket: &Bucket,
        key: &Key,
        version_id: Option<&Arc<str>>,
    ) -> aws_sdk_s3::operation::get_object::builders::GetObjectFluentBuilder {
        let request = self
            .client
            .sdk()
            .get_object()
            .bucket(bucket.as_str())
            .key(key.as_str())
            .set_version_id(version_id.map(ToString::to_string))
            .set_expected_bucket_owner(self.bucket_owner.clone())
            .set_request_payer(self.payer.clone());
        match &self.sse_key {
            None => request,
            Some(sse_key) => request
                .sse_customer_algorithm("AES256")
                .sse_customer_key(sse_key.base64())
                .sse_customer_key_md5(sse_key.base64_md5()),
        }
    }

    /// Runs `attempt` again while it fails in ways that may pass, as often as the endpoint's
    /// configuration allows, with exponential backoff and jitter.
    ///
    /// # Errors
    /// The last attempt's error.
    pub async fn retried<T, E, F>(&self, attempt: impl FnMut() -> F) -> Result<T, E>
    where
        E: Transient,
        F: Future<Output = Result<T, E>>,
    {
        attempt
            .retry(self.backoff())
            .when(E::is_transient)
            .notify(|error, pause| {
                self.metrics.s3_retries.inc();
                tracing::debug!(%error, ?pause, "retrying a request to S3");
            })
            .await
    }

    fn backoff(&self) -> impl BackoffBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(self.client.retries())
            .with_jitter()
    }

    /// Waits until a request may be sent, and can be signed.
    async fn permit(&self, operation: &'static str) -> Result<Permit, SourceError> {
        // First, so that nobody holds a permit while a token service makes up its mind.
        self.client.ready().await?;
        let permit = self.client.requests().take(1).await;
        self.metrics.s3_requests.with_label_values(&[operation]).inc();
        Ok(permit)
    }

    /// Waits until `size` more bytes may be on their way: at most a part (`fetch.partSize`).
    ///
    /// # Cancellation
    /// Safe.
    pub async fn bytes(&self, size: u64) -> Permit {
        self.client.bytes().take(byte_units(size)).await
    }

    fn counted<T>(
        &self,
        operation: &'static str,
        outcome: Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        outcome.map_err(|error| {
            self.metrics.s3_errors.with_label_values(&[operation, error.kind().as_str()]).inc();
            self.client.judge(error)
        })
    }

    /// Sends a request under the name of the pod: see [`agent`].
    fn named<F: Future>(&self, request: F) -> impl Future<Output = F::Output> + use<F> {
        agent::named(Arc::clone(&self.agent), request)
    }

    fn what_prefix(&self, bucket: &Bucket, prefix: &str) -> String {
        let endpoint = self.endpoint().url();
        format!("endpoint {endpoint}, bucket {:?}, prefix {prefix:?}", bucket.as_str())
    }

    fn what(&self, bucket: &Bucket, key: &Key, version_id: Option<&Arc<str>>) -> What {
        let endpoint = self.endpoint().clone();
        let (bucket, key) = (bucket.clone(), key.clone());
        What { endpoint, bucket, key, version_id: version_id.cloned() }
    }

    fn place(&self, bucket: &Bucket) -> page::Place {
        let (endpoint, bucket) = (self.endpoint().clone(), bucket.clone());
        page::Place { endpoint, bucket, sse_key: self.sse_key_digest() }
    }

    /// Tells the customer key apart that objects are asked for with, if any.
    pub fn sse_key_digest(&self) -> Option<SseKeyDigest> {
        self.sse_key.as_ref().map(|key| key.digest())
    }
}
