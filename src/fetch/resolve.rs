//! From a volume's sources to one listing.

use thiserror::Error;

use crate::{
    failure::FailureKind,
    listing::{Listing, ListingBuilder, ListingError, natural_path},
    relpath::PathProblem,
    source::{SourceError, s3::S3Source},
    task::blocking,
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
        "endpoint {endpoint}, bucket {bucket:?}, prefix {prefix:?}: no object is found; check \
         prefix, include and exclude, or set allowEmpty: \"true\""
    )]
    Empty {
        /// The endpoint's URL.
        endpoint: String,
        /// The bucket.
        bucket: String,
        /// The prefix.
        prefix: String,
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
            Self::Empty { .. } => FailureKind::NotFound,
            Self::Path { .. } => FailureKind::Invalid,
        }
    }
}

/// How many files and directories are put in order in passing.
const FEW: usize = 1000;

/// Asks for every source in turn and puts the answers together.
pub(super) async fn resolve(source: &S3Source, spec: &VolumeSpec) -> Result<Listing, ResolveError> {
    let mut builder = ListingBuilder::new(spec.max_objects);
    for part in &spec.sources {
        add(source, part, &mut builder).await?;
        if builder.next_source() == 0 && !spec.allow_empty {
            return Err(empty(source, part));
        }
    }
    // Sorting a million keys is no work for the threads that answer everybody else; sorting a few
    // is less work than going to another thread.
    let finished = if builder.len() <= FEW {
        builder.finish()
    } else {
        blocking(move || builder.finish()).await
    };
    Ok(finished?)
}

async fn add(
    source: &S3Source,
    part: &SourceSpec,
    builder: &mut ListingBuilder,
) -> Result<(), ResolveError> {
    match &part.selection {
        Selection::Prefix(prefix) => {
            source
                .list(&part.bucket, prefix, |object| {
                    let key = object.version.key.clone();
                    let below = prefix.strip(key.as_str()).unwrap_or_default();
                    let directory = part.path.as_ref();
                    builder.add_below(directory, below, &part.filter, object)?;
                    Ok(())
                })
                .await
        }
        Selection::Key { key, version_id } => {
            let natural = || {
                let failed = |problem| ResolveError::Path { key: key.to_string(), problem };
                natural_path(key).map_err(failed)
            };
            let path = part.path.clone().map_or_else(natural, Ok)?;
            let head = source.head(&part.bucket, key, version_id.as_ref()).await?;
            Ok(builder.add_file(path, head.object)?)
        }
    }
}

fn empty(source: &S3Source, part: &SourceSpec) -> ResolveError {
    let prefix = match &part.selection {
        Selection::Prefix(prefix) => prefix.as_str(),
        Selection::Key { key, .. } => key.as_str(),
    };
    ResolveError::Empty {
        endpoint: source.endpoint().url().to_owned(),
        bucket: part.bucket.to_string(),
        prefix: prefix.to_owned(),
    }
}
