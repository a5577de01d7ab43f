//! Buckets, keys and versions, in memory.
//!
//! The newest version of a key is the last of its list. A bucket that never had versioning, or has
//! it suspended, keeps at most one version called `null` per key, as S3 does; that id is reused,
//! which is why nobody may take it for an identity.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use s3s::dto::{Checksum, Metadata};
use s3s::{S3Error, S3Result, s3_error};

use super::content::Content;

/// Whether a bucket keeps old versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versioning {
    /// Never enabled.
    Off,
    /// Every put and delete adds a version.
    Enabled,
    /// Was enabled; puts and deletes replace the `null` version.
    Suspended,
}

/// What is stored with an object besides its content.
#[derive(Debug, Clone, Default)]
pub(crate) struct Properties {
    /// `GLACIER` cannot be read; none means `STANDARD`.
    pub(crate) storage_class: Option<String>,
    /// Base64 MD5 of the SSE-C key that the object needs.
    pub(crate) customer_key_md5: Option<String>,
    /// Content-Type.
    pub(crate) content_type: Option<String>,
    /// `x-amz-meta-*`.
    pub(crate) metadata: Option<Metadata>,
}

/// The unchanging part of an object version.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its bytes.
    pub(crate) content: Content,
    /// Its ETag, without quotes.
    pub(crate) etag: String,
    /// The checksums of the whole object.
    pub(crate) checksum: Checksum,
    /// The rest.
    pub(crate) properties: Properties,
}

/// One version of a key.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// The version id, `null` without versioning.
    pub(crate) id: String,
    /// Last-Modified, in whole seconds.
    pub(crate) modified: SystemTime,
    /// The object, or none for a delete marker.
    pub(crate) object: Option<Arc<Object>>,
}

/// All versions by key, oldest first; never an empty list.
pub(crate) type Keys = BTreeMap<String, Vec<Version>>;

/// What a put answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PutInfo {
    /// The ETag, without quotes.
    pub(crate) etag: String,
    /// The version id, on a bucket that has versioning.
    pub(crate) version_id: Option<String>,
}

/// What a delete did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeleteInfo {
    /// The id of the delete marker, or of the version that was removed.
    pub(crate) version_id: Option<String>,
    /// Whether that is a delete marker.
    pub(crate) delete_marker: bool,
}

/// An object version that was looked up.
#[derive(Debug)]
pub(crate) struct Found {
    /// The object.
    pub(crate) object: Arc<Object>,
    /// Last-Modified.
    pub(crate) modified: SystemTime,
    /// The version id to answer, on a bucket that has versioning.
    pub(crate) version_id: Option<String>,
}

/// One bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// When it was created.
    pub(crate) created: SystemTime,
    /// Whether it keeps versions.
    pub(crate) versioning: Versioning,
    /// Its content.
    pub(crate) keys: Keys,
}

impl Bucket {
    fn shown(&self, version_id: &str) -> Option<String> {
        (self.versioning != Versioning::Off).then(|| version_id.to_owned())
    }

    fn push(&mut self, key: &str, version: Version) {
        let versions = self.keys.entry(key.to_owned()).or_default();
        if version.id == NULL {
            versions.retain(|old| old.id != NULL);
        }
        versions.push(version);
    }
}

/// The id of versions written without versioning.
pub(crate) const NULL: &str = "null";

/// All buckets.
#[derive(Debug, Default)]
pub(crate) struct Store {
    buckets: RwLock<BTreeMap<String, Bucket>>,
    ids: AtomicU64,
    time: Mutex<Option<SystemTime>>,
}

impl Store {
    /// The time that new versions get; none means the clock.
    pub(crate) fn set_time(&self, time: Option<SystemTime>) {
        *self.time.lock() = time;
    }

    /// Creates a bucket.
    pub(crate) fn create_bucket(&self, name: &str) -> S3Result<()> {
        let mut buckets = self.buckets.write();
        if buckets.contains_key(name) {
            return Err(s3_error!(BucketAlreadyOwnedByYou, "the bucket exists already"));
        }
        let bucket = Bucket { created: self.now(), versioning: Versioning::Off, keys: Keys::new() };
        buckets.insert(name.to_owned(), bucket);
        Ok(())
    }

    /// Removes an empty bucket.
    pub(crate) fn delete_bucket(&self, name: &str) -> S3Result<()> {
        let mut buckets = self.buckets.write();
        if !buckets.get(name).ok_or_else(no_such_bucket)?.keys.is_empty() {
            return Err(s3_error!(BucketNotEmpty, "the bucket is not empty"));
        }
        buckets.remove(name);
        Ok(())
    }

    /// All buckets by name, locked against changes as long as the answer lives.
    pub(crate) fn buckets(&self) -> RwLockReadGuard<'_, BTreeMap<String, Bucket>> {
        self.buckets.read()
    }

    /// Looks at one bucket, which cannot change meanwhile.
    pub(crate) fn read<T>(&self, bucket: &str, look: impl FnOnce(&Bucket) -> T) -> S3Result<T> {
        self.buckets.read().get(bucket).map(look).ok_or_else(no_such_bucket)
    }

    fn write<T>(&self, bucket: &str, change: impl FnOnce(&mut Bucket) -> T) -> S3Result<T> {
        self.buckets.write().get_mut(bucket).map(change).ok_or_else(no_such_bucket)
    }

    /// Switches versioning.
    pub(crate) fn set_versioning(&self, bucket: &str, versioning: Versioning) -> S3Result<()> {
        self.write(bucket, |bucket| bucket.versioning = versioning)
    }

    /// Stores an object as the newest version of `key`.
    pub(crate) fn put(&self, bucket: &str, key: &str, object: Object) -> S3Result<PutInfo> {
        let etag = object.etag.clone();
        let version_id = self.write(bucket, |bucket| {
            let version = self.version(bucket.versioning, Some(Arc::new(object)));
            let version_id = bucket.shown(&version.id);
            bucket.push(key, version);
            version_id
        })?;
        Ok(PutInfo { etag, version_id })
    }

    /// Stores several objects as the newest versions of their keys, all at one moment.
    pub(crate) fn put_together(
        &self,
        bucket: &str,
        objects: Vec<(String, Object)>,
    ) -> S3Result<()> {
        self.write(bucket, |bucket| {
            for (key, object) in objects {
                let version = self.version(bucket.versioning, Some(Arc::new(object)));
                bucket.push(&key, version);
            }
        })
    }

    /// Deletes `key`: with versioning by adding a delete marker, else for good.
    pub(crate) fn delete(&self, bucket: &str, key: &str) -> S3Result<DeleteInfo> {
        self.write(bucket, |bucket| {
            if bucket.versioning == Versioning::Off {
                bucket.keys.remove(key);
                return DeleteInfo { version_id: None, delete_marker: false };
            }
            let marker = self.version(bucket.versioning, None);
            let version_id = Some(marker.id.clone());
            bucket.push(key, marker);
            DeleteInfo { version_id, delete_marker: true }
        })
    }

    /// Removes one version for good; an unknown one is no error.
    pub(crate) fn delete_version(&self, bucket: &str, key: &str, id: &str) -> S3Result<DeleteInfo> {
        self.write(bucket, |bucket| {
            let versions = bucket.keys.get_mut(key);
            let removed = versions.and_then(|versions| {
                let at = versions.iter().position(|version| version.id == id)?;
                Some(versions.remove(at))
            });
            if bucket.keys.get(key).is_some_and(Vec::is_empty) {
                bucket.keys.remove(key);
            }
            let delete_marker = removed.is_some_and(|version| version.object.is_none());
            DeleteInfo { version_id: Some(id.to_owned()), delete_marker }
        })
    }

    /// The newest version of `key`, or the one asked for.
    pub(crate) fn find(&self, bucket: &str, key: &str, id: Option<&str>) -> S3Result<Found> {
        self.read(bucket, |bucket| {
            let versions = bucket.keys.get(key).map_or(&[][..], Vec::as_slice);
            let version = match id {
                None => versions.last().ok_or_else(no_such_key)?,
                Some(id) => versions.iter().find(|version| version.id == id).ok_or_else(|| {
                    s3_error!(NoSuchVersion, "The specified version does not exist.")
                })?,
            };
            let object = version.object.clone().ok_or_else(|| deleted(id))?;
            let version_id = bucket.shown(&version.id);
            Ok(Found { object, modified: version.modified, version_id })
        })?
    }

    fn version(&self, versioning: Versioning, object: Option<Arc<Object>>) -> Version {
        let id = match versioning {
            Versioning::Enabled => self.fresh_id(),
            Versioning::Off | Versioning::Suspended => NULL.to_owned(),
        };
        Version { id, modified: self.now(), object }
    }

    /// An id that was never used before and, like those of S3, does not tell the order.
    pub(crate) fn fresh_id(&self) -> String {
        let n = self.ids.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{n:08x}", n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// S3 keeps Last-Modified in whole seconds.
    fn now(&self) -> SystemTime {
        let now = self.time.lock().unwrap_or_else(SystemTime::now);
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => UNIX_EPOCH + Duration::from_secs(since.as_secs()),
            Err(before) => UNIX_EPOCH - Duration::from_secs(before.duration().as_secs()),
        }
    }
}

fn no_such_bucket() -> S3Error {
    s3_error!(NoSuchBucket, "The specified bucket does not exist")
}

fn no_such_key() -> S3Error {
    s3_error!(NoSuchKey, "The specified key does not exist.")
}

/// A delete marker reads as "no such key", unless it was asked for by its id.
fn deleted(id: Option<&str>) -> S3Error {
    let mut error = match id {
        None => no_such_key(),
        Some(_) => s3_error!(MethodNotAllowed, "the version is a delete marker"),
    };
    error.set_headers(HeaderMap::from_iter([
        (http::header::CONTENT_TYPE, HeaderValue::from_static("application/xml")),
        (http::HeaderName::from_static("x-amz-delete-marker"), HeaderValue::from_static("true")),
    ]));
    error
}
