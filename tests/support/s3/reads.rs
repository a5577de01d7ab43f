//! Reading an object: conditions, ranges, encryption keys.

use std::ops::Range as Bytes;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{
    Checksum, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadObjectInput,
    HeadObjectOutput, Range, StreamingBlob, Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::store::{Found, Store};

/// What GET and HEAD have in common.
#[derive(Debug)]
struct Request {
    bucket: String,
    key: String,
    version_id: Option<String>,
    range: Option<Range>,
    conditions: Conditions,
    customer_key: Option<String>,
    with_checksum: bool,
}

#[derive(Debug)]
struct Conditions {
    matches: Option<ETagCondition>,
    none_matches: Option<ETagCondition>,
    modified_since: Option<Timestamp>,
    unmodified_since: Option<Timestamp>,
}

/// GET and HEAD have inputs, and outputs, of the same fields and of different types.
macro_rules! convert {
    ($input:ty, $output:ident) => {
        impl TryFrom<$input> for Request {
            type Error = S3Error;

            fn try_from(input: $input) -> S3Result<Self> {
                Ok(Self {
                    bucket: input.bucket,
                    key: input.key,
                    version_id: input.version_id,
                    range: input.range,
                    conditions: Conditions {
                        matches: input.if_match,
                        none_matches: input.if_none_match,
                        modified_since: input.if_modified_since,
                        unmodified_since: input.if_unmodified_since,
                    },
                    customer_key: customer_key(input.sse_customer_key, input.sse_customer_key_md5)?,
                    with_checksum: input.checksum_mode.is_some_and(|it| it.as_str() == "ENABLED"),
                })
            }
        }

        impl From<&Answer> for $output {
            fn from(answer: &Answer) -> Self {
                let Found { object, modified, version_id } = &answer.found;
                let properties = object.properties.clone();
                let encrypted = properties.customer_key_md5.is_some();
                let checksum = answer.checksum.clone();
                Self {
                    accept_ranges: Some("bytes".to_owned()),
                    content_length: i64::try_from(answer.range.end - answer.range.start).ok(),
                    content_range: answer.content_range.clone(),
                    content_type: properties.content_type,
                    metadata: properties.metadata,
                    e_tag: Some(ETag::Strong(object.etag.clone())),
                    last_modified: Some((*modified).into()),
                    version_id: version_id.clone(),
                    storage_class: properties.storage_class.map(Into::into),
                    sse_customer_algorithm: encrypted.then(|| "AES256".to_owned()),
                    sse_customer_key_md5: properties.customer_key_md5,
                    checksum_crc32: checksum.checksum_crc32,
                    checksum_crc32c: checksum.checksum_crc32c,
                    checksum_crc64nvme: checksum.checksum_crc64nvme,
                    checksum_sha1: checksum.checksum_sha1,
                    checksum_sha256: checksum.checksum_sha256,
                    checksum_type: checksum.checksum_type,
                    ..Self::default()
                }
            }
        }
    };
}

convert!(GetObjectInput, GetObjectOutput);
convert!(HeadObjectInput, HeadObjectOutput);

#[derive(Debug)]
struct Answer {
    found: Found,
    range: Bytes<u64>,
    content_range: Option<String>,
    checksum: Checksum,
}

/// `GetObject`.
pub(crate) fn get(store: &Store, input: GetObjectInput) -> S3Result<GetObjectOutput> {
    let answer = answer(store, &input.try_into()?)?;
    let object = &answer.found.object;
    if object.properties.storage_class.as_deref() == Some("GLACIER") {
        return Err(s3_error!(InvalidObjectState, "the storage class does not allow reading"));
    }
    let body = StreamingBlob::new(object.content.chunks(answer.range.clone()));
    Ok(GetObjectOutput { body: Some(body), ..(&answer).into() })
}

/// `HeadObject`.
pub(crate) fn head(store: &Store, input: HeadObjectInput) -> S3Result<HeadObjectOutput> {
    Ok((&answer(store, &input.try_into()?)?).into())
}

fn answer(store: &Store, request: &Request) -> S3Result<Answer> {
    let found = store.find(&request.bucket, &request.key, request.version_id.as_deref())?;
    let object = &found.object;
    check_customer_key(object.properties.customer_key_md5.as_ref(), request.customer_key.as_ref())?;
    request.conditions.check(&found)?;
    let size = object.content.size();
    let (range, content_range) = match request.range {
        None => (0..size, None),
        Some(_) if size == 0 => return Err(S3ErrorCode::InvalidRange.into()),
        Some(range) => {
            let range = range.check(size)?;
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            (range, Some(text))
        }
    };
    let checksum = if request.with_checksum && content_range.is_none() {
        object.checksum.clone()
    } else {
        Checksum::default()
    };
    Ok(Answer { found, range, content_range, checksum })
}

impl Conditions {
    fn check(&self, found: &Found) -> S3Result<()> {
        let etag = ETag::Strong(found.object.etag.clone());
        let holds = |condition: &ETagCondition| match condition {
            ETagCondition::Any => true,
            ETagCondition::ETag(wanted) => wanted.value() == etag.value(),
        };
        let modified = Timestamp::from(found.modified);
        let is_unchanged = match (&self.matches, &self.unmodified_since) {
            (Some(condition), _) => holds(condition),
            (None, Some(since)) => modified <= *since,
            (None, None) => true,
        };
        if !is_unchanged {
            return Err(s3_error!(PreconditionFailed, "a pre-condition did not hold"));
        }
        let is_known = match (&self.none_matches, &self.modified_since) {
            (Some(condition), _) => holds(condition),
            (None, Some(since)) => modified <= *since,
            (None, None) => false,
        };
        if is_known { Err(not_modified(&etag)) } else { Ok(()) }
    }
}

fn not_modified(etag: &ETag) -> S3Error {
    let mut error = S3Error::new(S3ErrorCode::NotModified);
    let value = HeaderValue::from_str(&format!("\"{}\"", etag.value())).expect("ETags are ASCII");
    error.set_headers(HeaderMap::from_iter([(http::header::ETAG, value)]));
    error
}

/// The base64 MD5 of an SSE-C key, checked against the key.
pub(crate) fn customer_key(key: Option<String>, md5: Option<String>) -> S3Result<Option<String>> {
    let (Some(key), Some(md5)) = (key.as_ref(), md5.as_ref()) else {
        return match (key, md5) {
            (None, None) => Ok(None),
            _ => Err(s3_error!(InvalidArgument, "an SSE-C key needs its MD5, and the reverse")),
        };
    };
    match STANDARD.decode(key) {
        Ok(bytes) if bytes.len() == 32 && customer_key_md5(&bytes) == *md5 => Ok(Some(md5.clone())),
        _ => Err(s3_error!(InvalidArgument, "the SSE-C key is not 32 bytes with this MD5")),
    }
}

/// The base64 MD5 of the bytes of an SSE-C key.
pub(crate) fn customer_key_md5(key: &[u8]) -> String {
    STANDARD.encode(Md5::checksum(key))
}

fn check_customer_key(needed: Option<&String>, given: Option<&String>) -> S3Result<()> {
    match (needed, given) {
        (Some(needed), Some(given)) if needed == given => Ok(()),
        (None, None) => Ok(()),
        (Some(_), Some(_)) => Err(s3_error!(AccessDenied, "Access Denied")),
        (Some(_), None) => Err(s3_error!(InvalidRequest, "the object needs an SSE-C key")),
        (None, Some(_)) => Err(s3_error!(InvalidRequest, "the object has no SSE-C key")),
    }
}
