//! Sources at a moment of the past: `asOf`.

use std::collections::HashSet;

use jiff::Timestamp;

use super::{ResolveError, add, add_below, file_path};
use crate::{
    failure::FailureKind,
    listing::{Evidence, ListingBuilder, StateAt},
    object::{Bucket, Key, Object},
    source::s3::{HistoryOf, S3Source, Versioning},
    volume::{Selection, SourceSpec},
};

/// Resolves sources to what they were.
#[derive(Debug)]
pub(super) struct Past<'a> {
    source: &'a S3Source,
    moment: Timestamp,
    allow_empty: bool,
    /// Buckets that need not be asked whether they keep versions.
    versioned: HashSet<Bucket>,
}

impl<'a> Past<'a> {
    pub(super) fn new(source: &'a S3Source, moment: Timestamp, allow_empty: bool) -> Self {
        Self { source, moment, allow_empty, versioned: HashSet::new() }
    }

    /// Adds what one source was. A key with a version id is what it is: no moment changes it.
    pub(super) async fn add(
        &mut self,
        part: &SourceSpec,
        builder: &mut ListingBuilder,
    ) -> Result<(), ResolveError> {
        match &part.selection {
            Selection::Key { version_id: Some(_), .. } => add(self.source, part, builder).await,
            Selection::Key { key, version_id: None } => {
                let path = file_path(part, key)?;
                let object = self.object(&part.bucket, key).await?;
                Ok(builder.add_file(&path, &object)?)
            }
            Selection::Prefix(prefix) => {
                let take = |object| add_below(part, prefix, &object, builder);
                let evidence = self.objects(&part.bucket, HistoryOf::Prefix(prefix), take).await?;
                self.check_versioned(&part.bucket, evidence, !self.allow_empty).await
            }
        }
    }

    /// The object that a key was.
    async fn object(&mut self, bucket: &Bucket, key: &Key) -> Result<Object, ResolveError> {
        let mut found = None;
        let take = |object| {
            found = Some(object);
            Ok(())
        };
        let evidence = self.objects(bucket, HistoryOf::Key(key), take).await?;
        self.check_versioned(bucket, evidence, true).await?;
        found.ok_or_else(|| ResolveError::NotThen {
            endpoint: self.source.endpoint().url().to_owned(),
            bucket: bucket.to_string(),
            key: key.to_string(),
            moment: self.moment,
        })
    }

    /// Hands the objects of the moment to `take`; tells what their history shows.
    async fn objects(
        &self,
        bucket: &Bucket,
        history: HistoryOf<'_>,
        mut take: impl FnMut(Object) -> Result<(), ResolveError>,
    ) -> Result<Evidence, ResolveError> {
        let mut state = StateAt::new(self.moment);
        self.source
            .list_versions(bucket, history, |version| state.add(version).map_or(Ok(()), &mut take))
            .await?;
        let (last, evidence) = state.finish();
        last.map_or(Ok(()), take)?;
        Ok(evidence)
    }

    /// Makes sure that what is missing in a history was not there, and is not just forgotten.
    ///
    /// Asks S3 only if the history leaves it open, and once for each bucket: the right to ask is
    /// one that readers of a bucket often lack. If it is denied, the history has to do;
    /// `empty_is_refused` says that having nothing will be an error anyway, and a better one.
    async fn check_versioned(
        &mut self,
        bucket: &Bucket,
        evidence: Evidence,
        empty_is_refused: bool,
    ) -> Result<(), ResolveError> {
        if evidence != Evidence::Versioned && !self.versioned.contains(bucket) {
            match self.source.versioning(bucket).await {
                Ok(Versioning::On) => {}
                Ok(Versioning::Off) => return Err(self.unversioned(bucket, "off", "")),
                Err(error) if error.kind() != FailureKind::Denied => return Err(error.into()),
                Err(error) if evidence == Evidence::Nothing => {
                    return if empty_is_refused { Ok(()) } else { Err(error.into()) };
                }
                Err(_) => {
                    let state = "off, as far as can be seen: only versions with the id null are \
                                 listed";
                    let more = "; if it is on, allow s3:GetBucketVersioning on the bucket to this \
                                identity";
                    return Err(self.unversioned(bucket, state, more));
                }
            }
        }
        self.versioned.insert(bucket.clone());
        Ok(())
    }

    fn unversioned(
        &self,
        bucket: &Bucket,
        state: &'static str,
        more: &'static str,
    ) -> ResolveError {
        let endpoint = self.source.endpoint().url().to_owned();
        ResolveError::Unversioned { endpoint, bucket: bucket.to_string(), state, more }
    }
}
