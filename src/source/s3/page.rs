//! From the SDK's answers to our objects.

use std::{sync::Arc, time::SystemTime};

use aws_sdk_s3::{
    operation::{
        get_bucket_versioning::GetBucketVersioningOutput, head_object::HeadObjectOutput,
        list_object_versions::ListObjectVersionsOutput, list_objects_v2::ListObjectsV2Output,
    },
    primitives::DateTime,
    types::EncodingType,
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::AfterDeserializationInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;
use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::{Head, body::Checksum};
use crate::{
    failure::FailureKind,
    object::{
        Bucket, ETag, EndpointId, Key, NameError, Object, ObjectVersion, Prefix, SseKeyDigest,
    },
    source::SourceError,
};

/// Where an answer's objects are, and how they are read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) endpoint: EndpointId,
    pub(super) bucket: Bucket,
    pub(super) sse_key: Option<SseKeyDigest>,
}

impl Place {
    pub(super) fn version(&self, key: Key, etag: &str, size: u64) -> ObjectVersion {
        let Self { endpoint, bucket, sse_key } = self;
        let (endpoint, bucket) = (endpoint.clone(), bucket.clone());
        ObjectVersion { endpoint, bucket, key, etag: ETag::new(etag), size, sse_key: *sse_key }
    }
}

/// Refuses a listing whose end is missing. The SDK's reader takes
/// the end of the input for the end of the document, and a cut listing would look like a bucket
/// with fewer objects.
#[derive(Debug)]
pub(super) struct Whole;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Whole {
    fn name(&self) -> &'static str {
        "Whole"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Ok(output) = context.output_or_error() else { return Ok(()) };
        let element = if output.downcast_ref::<ListObjectsV2Output>().is_some() {
            "ListBucketResult"
        } else if output.downcast_ref::<ListObjectVersionsOutput>().is_some() {
            "ListVersionsResult"
        } else if output.downcast_ref::<GetBucketVersioningOutput>().is_some() {
            "VersioningConfiguration"
        } else {
            return Ok(());
        };
        let body = context.response().body().bytes().unwrap_or_default();
        if is_whole(body, element) { Ok(()) } else { Err("the answer is cut off".into()) }
    }
}

/// Whether the last tag of a document ends its outermost element.
fn is_whole(document: &[u8], element: &str) -> bool {
    let document = document.trim_ascii_end();
    let last = document.iter().rposition(|byte| *byte == b'<').unwrap_or_default();
    let tag = document[last..].strip_prefix(b"<").and_then(|tag| tag.strip_suffix(b">"));
    let Some(tag) = tag else { return false };
    match tag.strip_suffix(b"/") {
        // It is empty, and only now begun.
        Some(whole) => whole.starts_with(element.as_bytes()),
        None => tag.strip_prefix(b"/") == Some(element.as_bytes()),
    }
}

/// One page of a listing.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    pub(super) next: Option<String>,
}

/// Names of directories right below another, each with its `/`.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) names: Vec<String>,
    /// Whether there are more.
    pub(super) is_cut: bool,
}

/// An answer that no S3 service should give.
#[derive(Debug, Error)]
pub(super) enum Unusable {
    #[error("an entry has no {0}")]
    Missing(&'static str),
    #[error("a key {0}")]
    Key(#[from] NameError),
    #[error("the key {0:?} is not UTF-8 when decoded")]
    Encoding(String),
    #[error("the key {0:?} is not below the prefix that was asked for")]
    Elsewhere(String),
    #[error("the listing is said to go on, but no continuation token is given")]
    NoToken,
    #[error("the listing goes on with the same continuation token again")]
    SameToken,
    #[error("the keys of a page are not in the order of those before")]
    Unordered,
    #[error("the listing is said to go on, but no key marker is given")]
    NoMarker,
    #[error("the listing goes on with the same key and version marker again")]
    SameMarker,
    #[error("the order of its versions and delete markers cannot be told")]
    Order,
}

/// Makes the error for an unusable answer.
pub(super) fn unusable(what: &str, problem: &Unusable) -> SourceError {
    let text = format!("{what}: the endpoint's answer cannot be used: {problem}");
    SourceError::new(FailureKind::Internal, text)
}

/// Reads one page of `ListObjectsV2`, undoing `encoding-type=url` (the SDK leaves that to us).
pub(super) fn parse(
    output: ListObjectsV2Output,
    place: &Place,
    prefix: &Prefix,
) -> Result<Page, Unusable> {
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let next = match (output.is_truncated, output.next_continuation_token) {
        (Some(true), None) => return Err(Unusable::NoToken),
        (Some(true), token) => token,
        _ => None,
    };
    let parse_one = |listed: aws_sdk_s3::types::Object| {
        let key = listed.key.ok_or(Unusable::Missing("key"))?;
        let key = if encoded { decode(&key)? } else { key };
        let etag = listed.e_tag.ok_or(Unusable::Missing("ETag"))?;
        if prefix.strip(&key).is_none() {
            return Err(Unusable::Elsewhere(key));
        }
        Ok(Object {
            version: place.version(Key::parse(&key)?, &etag, size(listed.size)?),
            version_id: None,
            last_modified: time(listed.last_modified.as_ref())?,
        })
    };
    let objects = output.contents.unwrap_or_default().into_iter().map(parse_one);
    Ok(Page { objects: objects.collect::<Result<_, _>>()?, next })
}

/// Reads the common prefixes of one page of `ListObjectsV2`.
pub(super) fn parse_names(output: ListObjectsV2Output) -> Result<Names, Unusable> {
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let is_cut = output.is_truncated == Some(true);
    let parse_one = |common: aws_sdk_s3::types::CommonPrefix| {
        let name = common.prefix.ok_or(Unusable::Missing("prefix"))?;
        if encoded { decode(&name) } else { Ok(name) }
    };
    let names = output.common_prefixes.unwrap_or_default().into_iter().map(parse_one);
    Ok(Names { names: names.collect::<Result<_, _>>()?, is_cut })
}

/// Reads the answer to `HeadObject`.
pub(super) fn parse_head(
    output: &HeadObjectOutput,
    place: &Place,
    key: &Key,
    version_id: Option<&Arc<str>>,
) -> Result<Head, Unusable> {
    let checksum = Checksum::of_head(output);
    let etag = output.e_tag().ok_or(Unusable::Missing("ETag"))?;
    let object = Object {
        version: place.version(key.clone(), etag, size(output.content_length())?),
        version_id: version_id.cloned(),
        last_modified: time(output.last_modified())?,
    };
    Ok(Head { object, checksum })
}

pub(super) fn size(size: Option<i64>) -> Result<u64, Unusable> {
    size.and_then(|size| u64::try_from(size).ok()).ok_or(Unusable::Missing("size"))
}

pub(super) fn time(time: Option<&DateTime>) -> Result<SystemTime, Unusable> {
    time.and_then(|time| SystemTime::try_from(*time).ok()).ok_or(Unusable::Missing("Last-Modified"))
}

/// Undoes the URL encoding of a key: `+` is a space (a plus sign is sent as `%2B`).
pub(super) fn decode(key: &str) -> Result<String, Unusable> {
    let spaced = key.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    decoded.map(Into::into).map_err(|_| Unusable::Encoding(key.to_owned()))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("a+b", "a b")]
    #[test_case("a%2Bb", "a+b")]
    #[test_case("%D1%84", "\u{444}")]
    #[test_case("a/b%25", "a/b%")]
    #[test_case("%01", "\u{1}"; "what XML cannot hold")]
    fn keys_are_decoded(encoded: &str, key: &str) {
        assert_eq!(decode(encoded).unwrap(), key);
    }

    #[test]
    fn a_key_that_is_not_utf8_is_refused() {
        assert!(decode("%FF").is_err());
    }

    #[test]
    fn a_listing_without_its_end_is_not_whole() {
        let is_whole = |listing: &str| is_whole(listing.as_bytes(), "ListBucketResult");
        assert!(is_whole("<ListBucketResult></ListBucketResult>\n"));
        assert!(!is_whole("<ListBucketResult><Contents><Key>a</Key></Contents>"));
        assert!(!is_whole("<ListBucketResult><Contents/>"));
        assert!(!is_whole("<ListBucketResult></ListBucketResult"));
        assert!(!is_whole(""));
    }

    #[test]
    fn an_empty_answer_is_whole() {
        let is_whole = |answer: &str| is_whole(answer.as_bytes(), "VersioningConfiguration");
        assert!(is_whole("<VersioningConfiguration xmlns=\"http://s3/\"/>"));
        assert!(!is_whole("<VersioningConfiguration xmlns=\"http://s3/\">"));
    }

    #[test]
    fn a_truncated_page_without_token_is_refused() {
        let output = ListObjectsV2Output::builder().is_truncated(true).build();
        let bucket = Bucket::parse("bucket").unwrap();
        let place = Place { endpoint: EndpointId::new("http://s3", None), bucket, sse_key: None };
        let page = parse(output, &place, &Prefix::default());
        assert!(matches!(page, Err(Unusable::NoToken)));
    }
}
