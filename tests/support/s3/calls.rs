//! What clients asked: one [`Call`] per request, counted on arrival and logged with its status.
//!
//! A call is read from the request line and headers, before any signature is checked, so that
//! requests which a fault swallows, or which are refused, count as well.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName, IF_MATCH, RANGE, USER_AGENT};
use http::{Method, Request};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

const BUCKET_OWNER: HeaderName = HeaderName::from_static("x-amz-expected-bucket-owner");
const PAYER: HeaderName = HeaderName::from_static("x-amz-request-payer");

/// One request, as far as it can be read without checking it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The operation, as the S3 API names it: `GetObject`, `ListObjectsV2`, ...
    pub(crate) operation: &'static str,
    /// The bucket; empty for `ListBuckets`.
    pub(crate) bucket: String,
    /// The object key; of a listing, the prefix asked for.
    pub(crate) key: String,
    /// The `versionId` asked for.
    pub(crate) version_id: Option<String>,
    /// The Range header.
    pub(crate) range: Option<String>,
    /// The If-Match header, quotes included.
    pub(crate) if_match: Option<String>,
    /// The User-Agent header.
    pub(crate) user_agent: Option<String>,
    /// The access key id that the request claims; none if it is not signed.
    pub(crate) access_key: Option<String>,
    /// Who must own the bucket.
    pub(crate) bucket_owner: Option<String>,
    /// Who pays.
    pub(crate) payer: Option<String>,
}

impl Call {
    /// Reads the call from a request with a path-style address.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let query: BTreeMap<_, _> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes())
                .into_owned()
                .collect();
        let operation = operation(request, bucket, key, |name| query.contains_key(name));
        let is_listing = operation.starts_with("ListObject");
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        Self {
            operation,
            bucket: decoded(bucket),
            key: match query.get("prefix") {
                Some(prefix) if is_listing => prefix.clone(),
                _ => decoded(key),
            },
            version_id: query.get("versionId").cloned(),
            range: header(request, &RANGE),
            if_match: header(request, &IF_MATCH),
            user_agent: header(request, &USER_AGENT),
            access_key: header(request, &AUTHORIZATION).as_deref().and_then(access_key),
            bucket_owner: header(request, &BUCKET_OWNER),
            payer: header(request, &PAYER),
        }
    }
}

fn header<B>(request: &Request<B>, name: &HeaderName) -> Option<String> {
    request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn access_key(authorization: &str) -> Option<String> {
    let (_, credential) = authorization.split_once("Credential=")?;
    Some(credential.split_once('/')?.0.to_owned())
}

fn operation<B>(
    request: &Request<B>,
    bucket: &str,
    key: &str,
    has: impl Fn(&str) -> bool,
) -> &'static str {
    match (request.method(), bucket.is_empty(), key.is_empty()) {
        (&Method::GET, true, _) => "ListBuckets",
        (&Method::GET, _, true) if has("versions") => "ListObjectVersions",
        (&Method::GET, _, true) if has("versioning") => "GetBucketVersioning",
        (&Method::GET, _, true) if has("location") => "GetBucketLocation",
        (&Method::GET, _, true) if has("list-type") => "ListObjectsV2",
        (&Method::GET, _, true) => "ListObjects",
        (&Method::HEAD, _, true) => "HeadBucket",
        (&Method::PUT, _, true) if has("versioning") => "PutBucketVersioning",
        (&Method::PUT, _, true) => "CreateBucket",
        (&Method::DELETE, _, true) => "DeleteBucket",
        (&Method::GET, ..) => "GetObject",
        (&Method::HEAD, ..) => "HeadObject",
        (&Method::PUT, ..) if has("uploadId") => "UploadPart",
        (&Method::PUT, ..) => "PutObject",
        (&Method::DELETE, ..) if has("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, ..) => "DeleteObject",
        (&Method::POST, ..) if has("uploads") => "CreateMultipartUpload",
        (&Method::POST, ..) if has("uploadId") => "CompleteMultipartUpload",
        _ => "Unknown",
    }
}

/// A call and how it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    /// What was asked.
    pub(crate) call: Arc<Call>,
    /// The HTTP status, or none if the connection was reset instead.
    pub(crate) status: Option<u16>,
}

/// How many requests came, by operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestCounts(BTreeMap<&'static str, u64>);

impl RequestCounts {
    /// Requests of one operation, for example `GetObject`.
    pub(crate) fn of(&self, operation: &str) -> u64 {
        self.0.get(operation).copied().unwrap_or(0)
    }

    /// Listings of objects or versions: what a bill calls LIST.
    pub(crate) fn lists(&self) -> u64 {
        ["ListObjectsV2", "ListObjects", "ListObjectVersions"]
            .map(|name| self.of(name))
            .iter()
            .sum()
    }

    /// GETs of objects.
    pub(crate) fn gets(&self) -> u64 {
        self.of("GetObject")
    }

    /// All requests.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Counts and remembers calls; the log keeps the newest [`Recorder::LOG`].
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    counts: Mutex<RequestCounts>,
    log: Mutex<VecDeque<Logged>>,
}

impl Recorder {
    /// How many calls the log keeps.
    pub(crate) const LOG: usize = 32_768;

    /// A call has come.
    pub(crate) fn arrived(&self, call: &Call) {
        *self.counts.lock().0.entry(call.operation).or_default() += 1;
    }

    /// A call was answered, with the status or by a reset.
    pub(crate) fn answered(&self, call: Arc<Call>, status: Option<u16>) {
        let mut log = self.log.lock();
        if log.len() == Self::LOG {
            log.pop_front();
        }
        log.push_back(Logged { call, status });
    }

    /// The counts since the last [`Recorder::reset`].
    pub(crate) fn counts(&self) -> RequestCounts {
        self.counts.lock().clone()
    }

    /// The answered calls since the last [`Recorder::reset`], oldest first.
    pub(crate) fn log(&self) -> Vec<Logged> {
        self.log.lock().iter().cloned().collect()
    }

    /// Forgets counts and log.
    pub(crate) fn reset(&self) {
        self.counts.lock().0.clear();
        self.log.lock().clear();
    }
}
