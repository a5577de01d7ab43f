//! From a volume's sources to one listing.

mod past;

use jiff::Timestamp;
use thiserror::Error;

use self::past::Past;
use crate::{
    failure::FailureKind,
    listing::{Listing, ListingBuilder, ListingError, natural_path},
    object::{Key, Object, Prefix},
    relpath::{PathProblem, RelPath},
    source::{SourceError, s3::S3Source},
    task::for_count,
    volume::{Selection, SourceSpec, VolumeSpec},
};

/// Why sources make no listing.
#[derive(Debug, Clone, Error)]
pub enum ResolveError {
    /// S3 refused, or could not be reached.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The keys do not fit together.
    #[error(transparent)]
    Listing(#[from] ListingError),
    /// Nothing is there, and nobody said that this is fine.
    #[error(
        "endpoint {endpoint}, bucket {bucket:?}, prefix {prefix:?}: no object is found{when}; check \
         prefix, include and exclude, or set allowEmpty: \"true\""
    )]
    Empty {
        /// The endpoint's URL.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
        /// ` at TIME (asOf)`; empty: now.
        when: String,
    },
    /// A single key did not exist at the moment that is shown.
    #[error(
        "endpoint {endpoint}, bucket {bucket:?}, key {key:?}: the object did not exist at {moment}; \
         check key and asOf"
    )]
    NotThen {
        /// The endpoint's URL.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The moment.
        moment: Timestamp,
    },
    /// The bucket keeps no earlier states.
    #[error(
        "endpoint {endpoint}, bucket {bucket:?}: asOf needs bucket versioning, and it is {state}; \
         switch it on (PutBucketVersioning with Status Enabled): asOf can then show moments from that \
         time on{more}"
    )]
    Unversioned {
        /// The endpoint's URL.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// What is known about its versioning.
        state: &'static str,
        /// What else may help.
        more: &'static str,
    },
    /// A single key's last segment cannot be a file name.
    #[error("key {key:?}: {problem}; set path for this source")]
    Path {
        /// The key.
        key: String,
        /// Why not.
        problem: PathProblem,
    },
}

impl ResolveError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Listing(error) => error.kind(),
            Self::Empty { .. } | Self::NotThen { .. } => FailureKind::NotFound,
            Self::Unversioned { .. } => FailureKind::Precondition,
            Self::Path { .. } => FailureKind::Invalid,
        }
    }
}

/// Asks for every source in turn and puts the answers together.
pub(super) async fn resolve(source: &S3Source, spec: &VolumeSpec) -> Result<Listing, ResolveError> {
    let mut builder = ListingBuilder::new(spec.max_objects);
    let mut past = spec.as_of.map(|moment| Past::new(source, moment, spec.allow_empty));
    for part in &spec.sources {
        match &mut past {
            Some(past) => past.add(part, &mut builder).await?,
            None => add(source, part, &mut builder).await?,
        }
        if builder.next_source() == 0 && !spec.allow_empty {
            return Err(empty(source, part, spec.as_of));
        }
    }
    let finished = for_count(builder.len(), move || builder.finish()).await;
    Ok(finished?)
}

async fn add(
    source: &S3Source,
    part: &SourceSpec,
    builder: &mut ListingBuilder,
) -> Result<(), ResolveError> {
    match &part.selection {
        Selection::Prefix(prefix) => {
            let take = |object| add_below(part, prefix, &object, builder);
            source.list(&part.bucket, prefix, take).await
        }
        Selection::Key { key, version_id } => {
            let path = file_path(part, key)?;
            let head = source.head(&part.bucket, key, version_id.as_ref()).await?;
            Ok(builder.add_file(&path, &head.object)?)
        }
    }
}

fn add_below(
    part: &SourceSpec,
    prefix: &Prefix,
    object: &Object,
    builder: &mut ListingBuilder,
) -> Result<(), ResolveError> {
    let below = prefix.strip(object.version.key.as_str()).unwrap_or_default();
    Ok(builder.add_below(part.path.as_ref(), below, &part.filter, object)?)
}

/// Where a single key stands in the volume.
fn file_path(part: &SourceSpec, key: &Key) -> Result<RelPath, ResolveError> {
    let natural = || {
        let failed = |problem| ResolveError::Path { key: key.to_string(), problem };
        natural_path(key).map_err(failed)
    };
    part.path.clone().map_or_else(natural, Ok)
}

fn empty(source: &S3Source, part: &SourceSpec, moment: Option<Timestamp>) -> ResolveError {
    let prefix = match &part.selection {
        Selection::Prefix(prefix) => prefix.as_str(),
        Selection::Key { key, .. } => key.as_str(),
    };
    ResolveError::Empty {
        endpoint: source.endpoint().url().to_owned(),
        bucket: part.bucket.to_string(),
        prefix: prefix.to_owned(),
        when: moment.map(|moment| format!(" at {moment} (asOf)")).unwrap_or_default(),
    }
}
