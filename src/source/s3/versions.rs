//! The history of a versioned bucket: what `asOf` is answered from.

use std::sync::Arc;

use aws_sdk_s3::{
    operation::list_object_versions::ListObjectVersionsOutput,
    types::{BucketVersioningStatus, DeleteMarkerEntry, EncodingType, ObjectVersion},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::AfterDeserializationInterceptorContextRef},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;
use parking_lot::Mutex;

use super::{
    S3Source,
    error::{Asked, explain},
    page::{self, Place, Unusable},
};
use crate::{
    listing::KeyVersion,
    object::{Bucket, Key, Object, Prefix},
    source::SourceError,
};

/// Whose history is asked for.
#[derive(Debug, Clone, Copy)]
pub enum HistoryOf<'a> {
    /// All keys below a prefix.
    Prefix(&'a Prefix),
    /// One key.
    Key(&'a Key),
}

/// Whether a bucket keeps what is overwritten and deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    Off,
    /// It does, or did until versioning was suspended; what it kept is still there.
    On,
}

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marker {
    key: String,
    version_id: Option<String>,
}

/// One page of a history.
#[derive(Debug)]
struct Page {
    versions: Vec<KeyVersion>,
    next: Option<Marker>,
}

impl<'a> HistoryOf<'a> {
    /// What all keys that belong to it begin with; other keys may begin so too.
    fn prefix(self) -> &'a str {
        match self {
            Self::Prefix(prefix) => prefix.as_str(),
            Self::Key(key) => key.as_str(),
        }
    }
}

impl S3Source {
    /// Hands every version and delete marker of `history` to `take`, page by page: keys in their
    /// order, and of each key the newest first. A version is told twice if the history is changed
    /// while it is read.
    ///
    /// Needs `s3:ListBucketVersions` only. A page is retried on its own.
    ///
    /// # Errors
    /// What S3 answers, naming endpoint, bucket, and prefix or key; or the first error of `take`.
    ///
    /// # Cancellation
    /// Safe at every await; nothing is left.
    pub async fn list_versions<E: From<SourceError>>(
        &self,
        bucket: &Bucket,
        history: HistoryOf<'_>,
        mut take: impl FnMut(KeyVersion) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut marker = None;
        loop {
            let page = self.retried(|| self.versions_page(bucket, history, marker.clone())).await?;
            for version in page.versions {
                match history {
                    HistoryOf::Key(key) if version.key() == key => take(version)?,
                    // It is the first of all keys that begin like it, so nothing of it follows.
                    HistoryOf::Key(_) => return Ok(()),
                    HistoryOf::Prefix(_) => take(version)?,
                }
            }
            marker = advance(marker.as_ref(), page.next)
                .map_err(|problem| page::unusable(&self.what_history(bucket, history), &problem))?;
            if marker.is_none() {
                return Ok(());
            }
        }
    }

    async fn versions_page(
        &self,
        bucket: &Bucket,
        history: HistoryOf<'_>,
        marker: Option<Marker>,
    ) -> Result<Page, SourceError> {
        let what = self.what_history(bucket, history);
        let _permit = self.permit("ListObjectVersions").await?;
        let (key_marker, version_id_marker) =
            marker.map_or((None, None), |marker| (Some(marker.key), marker.version_id));
        let request = self
            .client
            .sdk()
            .list_object_versions()
            .bucket(bucket.as_str())
            .prefix(history.prefix())
            .encoding_type(EncodingType::Url)
            .set_key_marker(key_marker)
            .set_version_id_marker(version_id_marker)
            .set_expected_bucket_owner(self.bucket_owner.clone())
            .set_request_payer(self.payer.clone());
        let order = Order::default();
        let request = request.customize().interceptor(order.clone());
        let answer = self.named(request.send()).await;
        let answer = answer.map_err(|error| explain(&error, &what, Asked::Versions));
        let output = self.counted("ListObjectVersions", answer)?;
        parse(output, &order.take(), &self.place(bucket), history.prefix())
            .map_err(|problem| page::unusable(&what, &problem))
    }

    /// Asks whether a bucket keeps versions.
    ///
    /// Needs `s3:GetBucketVersioning`, which readers of a bucket often lack.
    ///
    /// # Errors
    /// What S3 answers, naming endpoint and bucket.
    ///
    /// # Cancellation
    /// Safe at every await; nothing is left.
    pub async fn versioning(&self, bucket: &Bucket) -> Result<Versioning, SourceError> {
        self.retried(|| self.versioning_once(bucket)).await
    }

    async fn versioning_once(&self, bucket: &Bucket) -> Result<Versioning, SourceError> {
        let what = format!("endpoint {}, bucket {:?}", self.endpoint().url(), bucket.as_str());
        let _permit = self.permit("GetBucketVersioning").await?;
        let request = self
            .client
            .sdk()
            .get_bucket_versioning()
            .bucket(bucket.as_str())
            .set_expected_bucket_owner(self.bucket_owner.clone());
        let answer = self.named(request.send()).await;
        let answer = answer.map_err(|error| explain(&error, &what, Asked::Versioning));
        let output = self.counted("GetBucketVersioning", answer)?;
        Ok(match output.status {
            Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended) => {
                Versioning::On
            }
            _ => Versioning::Off,
        })
    }

    fn what_history(&self, bucket: &Bucket, history: HistoryOf<'_>) -> String {
        match history {
            HistoryOf::Prefix(prefix) => self.what_prefix(bucket, prefix.as_str()),
            HistoryOf::Key(key) => self.what(bucket, key, None).to_string(),
        }
    }
}

/// The marker to go on with. An endpoint that goes round in circles would be followed for ever.
fn advance(last: Option<&Marker>, next: Option<Marker>) -> Result<Option<Marker>, Unusable> {
    match next {
        Some(next) if last == Some(&next) => Err(Unusable::SameMarker),
        next => Ok(next),
    }
}

/// Reads one page of `ListObjectVersions`, undoing `encoding-type=url` (the SDK leaves that to us;
/// the key marker is encoded like a key).
fn parse(
    output: ListObjectVersionsOutput,
    order: &[Kind],
    place: &Place,
    prefix: &str,
) -> Result<Page, Unusable> {
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let decode = |key: String| if encoded { page::decode(&key) } else { Ok(key) };
    let parse_key = |key: Option<String>| {
        let key = decode(key.ok_or(Unusable::Missing("key"))?)?;
        if !key.starts_with(prefix) {
            return Err(Unusable::Elsewhere(key));
        }
        Ok(Key::parse(&key)?)
    };
    let next = match (output.is_truncated, output.next_key_marker) {
        (Some(true), Some(key)) if !key.is_empty() => Some(Marker {
            key: decode(key)?,
            version_id: output.next_version_id_marker.filter(|id| !id.is_empty()),
        }),
        (Some(true), _) => return Err(Unusable::NoMarker),
        _ => None,
    };
    let written = |version: ObjectVersion| {
        let etag = version.e_tag.ok_or(Unusable::Missing("ETag"))?;
        let version_id = version.version_id.ok_or(Unusable::Missing("version id"))?;
        Ok(KeyVersion::Written(Object {
            version: place.version(parse_key(version.key)?, &etag, page::size(version.size)?),
            version_id: Some(version_id.into()),
            last_modified: page::time(version.last_modified.as_ref())?,
        }))
    };
    let deleted = |marker: DeleteMarkerEntry| {
        let last_modified = page::time(marker.last_modified.as_ref())?;
        Ok(KeyVersion::Deleted { key: parse_key(marker.key)?, last_modified })
    };
    let mut objects = output.versions.unwrap_or_default().into_iter().map(written);
    let mut markers = output.delete_markers.unwrap_or_default().into_iter().map(deleted);
    let in_order = order.iter().map(|kind| match kind {
        Kind::Version => objects.next().unwrap_or(Err(Unusable::Order)),
        Kind::DeleteMarker => markers.next().unwrap_or(Err(Unusable::Order)),
    });
    let versions = in_order.collect::<Result<_, _>>()?;
    if objects.next().is_some() || markers.next().is_some() {
        return Err(Unusable::Order);
    }
    Ok(Page { versions, next })
}

/// What an entry of a history is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Version,
    DeleteMarker,
}

/// Notes in which order versions and delete markers stand in an answer. The SDK puts them into two
/// lists, and so forgets whether a key that was written and deleted within one second exists.
#[derive(Debug, Clone, Default)]
struct Order(Arc<Mutex<Vec<Kind>>>);

impl Order {
    fn take(&self) -> Vec<Kind> {
        std::mem::take(&mut self.0.lock())
    }

    /// The kinds of the entries of a document. `<` begins a tag wherever it stands: in text it is
    /// written as an entity.
    fn of(document: &[u8]) -> Vec<Kind> {
        let kind = |tag: &[u8]| {
            let end = tag.iter().position(|byte| matches!(byte, b'>' | b'/' | b' ' | b'\n'));
            match &tag[..end?] {
                b"Version" => Some(Kind::Version),
                b"DeleteMarker" => Some(Kind::DeleteMarker),
                _ => None,
            }
        };
        document.split(|byte| *byte == b'<').filter_map(kind).collect()
    }
}

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Order {
    fn name(&self) -> &'static str {
        "Order"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.0.lock() = Self::of(context.response().body().bytes().unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::DateTime;

    use super::*;
    use crate::object::EndpointId;

    const BOTH: [Kind; 3] = [Kind::Version, Kind::DeleteMarker, Kind::Version];

    fn answer()
    -> aws_sdk_s3::operation::list_object_versions::builders::ListObjectVersionsOutputBuilder {
        let version = |key: &str, id: &str| {
            let version = ObjectVersion::builder().key(key).version_id(id).e_tag("\"e\"").size(1);
            version.last_modified(DateTime::from_secs(1)).build()
        };
        let marker = DeleteMarkerEntry::builder().key("p/a+b").version_id("2");
        ListObjectVersionsOutput::builder()
            .encoding_type(EncodingType::Url)
            .versions(version("p/a+b", "3"))
            .versions(version("p/a+b", "1"))
            .delete_markers(marker.last_modified(DateTime::from_secs(1)).build())
    }

    fn page(output: ListObjectVersionsOutput, order: &[Kind]) -> Result<Page, Unusable> {
        let bucket = Bucket::parse("bucket").unwrap();
        let place = Place { endpoint: EndpointId::new("http://s3", None), bucket, sse_key: None };
        parse(output, order, &place, "p/")
    }

    #[test]
    fn versions_and_delete_markers_stand_as_s3_put_them() {
        let versions = page(answer().build(), &BOTH).unwrap().versions;
        let id = |version: &KeyVersion| match version {
            KeyVersion::Written(object) => object.version_id.as_deref().map(str::to_owned),
            KeyVersion::Deleted { .. } => None,
        };
        let ids: Vec<_> = versions.iter().map(id).collect();
        assert_eq!(ids, [Some("3".to_owned()), None, Some("1".to_owned())]);
        assert!(versions.iter().all(|version| version.key().as_str() == "p/a b"));
    }

    #[test]
    fn an_order_that_does_not_fit_is_refused() {
        for order in [&BOTH[..2], &BOTH[..1], &[]] {
            assert!(matches!(page(answer().build(), order), Err(Unusable::Order)));
        }
        let more = [Kind::DeleteMarker; 2];
        assert!(matches!(page(answer().build(), &more), Err(Unusable::Order)));
    }

    #[test]
    fn the_order_is_that_of_the_document() {
        let document = b"<ListVersionsResult xmlns=\"x\"><VersionIdMarker/><Version><Key>a</Key>\
            <VersionId>3</VersionId></Version><DeleteMarker><Key>a</Key></DeleteMarker>\
            <Version x=\"y\"><Key>&lt;Version></Key></Version></ListVersionsResult>";
        assert_eq!(Order::of(document), BOTH);
        assert!(Order::of(b"").is_empty());
    }

    #[test]
    fn a_marker_is_decoded_and_may_not_come_twice() {
        let cut = answer().is_truncated(true).next_key_marker("p/a+b").next_version_id_marker("1");
        let next = page(cut.build(), &BOTH).unwrap().next.unwrap();
        assert_eq!(next, Marker { key: "p/a b".to_owned(), version_id: Some("1".to_owned()) });
        let other = Marker { version_id: None, ..next.clone() };
        assert_eq!(advance(Some(&other), Some(next.clone())).unwrap(), Some(next.clone()));
        assert!(matches!(advance(Some(&next), Some(next.clone())), Err(Unusable::SameMarker)));
        let lost = answer().is_truncated(true).next_key_marker("");
        assert!(matches!(page(lost.build(), &BOTH), Err(Unusable::NoMarker)));
    }

    #[test]
    fn a_key_elsewhere_is_refused() {
        let marker = DeleteMarkerEntry::builder().key("q/a").last_modified(DateTime::from_secs(1));
        let output = ListObjectVersionsOutput::builder().delete_markers(marker.build()).build();
        assert!(matches!(page(output, &[Kind::DeleteMarker]), Err(Unusable::Elsewhere(_))));
    }
}
