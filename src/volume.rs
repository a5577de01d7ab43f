//! What a publish request asks for, in types that cannot be wrong.
//!
//! The kubelet hands over three maps of text: attributes, reserved keys among them, and secrets.
//! Each is parsed once, here, into [`VolumeSpec`], [`PodInfo`], [`VolumeSecrets`] and
//! [`ServiceTokens`]; nothing further in looks at the text again. A parser never stops at the first mistake: a user who reads
//! `kubectl describe pod` should learn of all of them at once.
//!
//! What the user wrote is kept beside it as [`PublishArguments`], because "the same request again"
//! is a question about the request and not about what the configuration made of it today.

mod arguments;
mod attributes;
mod mount_options;
mod parse;
mod pod;
mod policy;
mod secrets;
mod sources;
mod tenant;
mod tokens;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;
use url::Url;

pub use self::{
    arguments::PublishArguments,
    attributes::{ATTRIBUTES, Brings, SpecContext, check_defaults, is_reserved},
    mount_options::check_mount_options,
    pod::PodInfo,
    policy::check_policy,
    secrets::{AccessKeys, SECRET_KEYS, SseCustomerKey, VolumeSecrets},
    sources::{SOURCE_KEYS, source_entries},
    tenant::{Tenant, check_driver_credentials},
    tokens::{ServiceToken, ServiceTokens, TOKENS_KEY},
};
use crate::{
    config::{AuthenticationKind, Config, EndpointConfig},
    failure::FailureKind,
    glob::Filter,
    object::{Bucket, Key, Prefix},
    problems::Problems,
    relpath::RelPath,
    units::{ByteSize, Mode, Refresh},
};

/// Everything that a volume's attributes say, defaults filled in and limits applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// What the volume shows; never empty.
    pub sources: Vec<SourceSpec>,
    /// How it is shown.
    pub view: ViewKind,
    /// How a new revision replaces the old one in a `tmpfs` or `disk` view.
    pub layout: Layout,
    /// The S3 service.
    pub endpoint: EndpointChoice,
    /// The region to sign for, where it is not the endpoint's.
    pub region: Option<String>,
    /// Where the credentials come from: what the attribute says, or else what the request brings.
    pub authentication: AuthenticationKind,
    /// The role that the pod's token is exchanged for.
    pub role: Role,
    /// How often the sources are resolved again.
    pub refresh: Refresh,
    /// How old the newest object of a changed listing must be before it is shown.
    pub settle: Duration,
    /// The moment whose state of a versioned bucket is shown; `refresh` is then `Never`.
    pub as_of: Option<Timestamp>,
    /// Whom the files belong to, and who may read them.
    pub ownership: Ownership,
    /// The most bytes that the listing may have; `None` is no bound.
    pub max_size: Option<ByteSize>,
    /// The most objects that the listing may have.
    pub max_objects: u64,
    /// Whether a source without objects is a valid, empty directory.
    pub allow_empty: bool,
    /// What happens when S3 cannot be reached at publish.
    pub when_unavailable: WhenUnavailable,
    /// The account that must own the buckets: 12 digits.
    pub expected_bucket_owner: Option<String>,
    /// Whether the requester agrees to pay.
    pub request_payer: bool,
    /// Whether a `fuse` view answers requests for extended attributes.
    pub xattrs: bool,
}

/// One place in S3, and its place in the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// The bucket.
    pub bucket: Bucket,
    /// What of the bucket.
    pub selection: Selection,
    /// The directory below which a prefix appears (`None`: the top), or the file that shows a key
    /// (never `None`).
    pub path: Option<RelPath>,
    /// Which keys below a prefix are wanted; accepts everything for a key.
    pub filter: Filter,
}

/// Many objects or one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every key below a prefix.
    Prefix(Prefix),
    /// A single object.
    Key {
        /// Its key.
        key: Key,
        /// The version to show; `None` is the current one.
        version_id: Option<Arc<str>>,
    },
}

/// How a listing is shown to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewKind {
    /// Fetched before the pod starts, in memory, never on a disk.
    Tmpfs,
    /// Fetched before the pod starts, on the node's cache disk.
    Disk,
    /// Fetched as it is read.
    Fuse,
}

impl ViewKind {
    /// Every view, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Tmpfs, Self::Disk, Self::Fuse];

    /// The word that users write, and the label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
            Self::Fuse => "fuse",
        }
    }
}

/// How a revision stands in a volume's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Symlinks through `..data`: all files change at once.
    Symlinks,
    /// Plain files: each is replaced by itself.
    Files,
}

/// Which S3 service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointChoice {
    /// The one that the configuration makes the default.
    Default,
    /// A configured one; it exists.
    Named(String),
    /// One that the policy allows: scheme, host and port only.
    Url(Url),
}

impl EndpointChoice {
    /// The configured endpoint that is chosen; `None` for a URL, and for AWS without configuration.
    pub fn configured<'a>(&self, config: &'a Config) -> Option<&'a EndpointConfig> {
        let name = match self {
            Self::Default => config.default_endpoint_name()?,
            Self::Named(name) => name,
            Self::Url(_) => return None,
        };
        config.endpoints.get(name)
    }
}

/// Which role a pod's token is exchanged for; `None` is the endpoint's setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// The role.
    pub role_arn: Option<String>,
    /// The token service: scheme, host and port only.
    pub sts_endpoint: Option<Url>,
    /// The audience that the token must have.
    pub audience: Option<String>,
}

/// Whom the files of a volume belong to, and who may read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ownership {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permissions of files.
    pub file_mode: Mode,
    /// The permissions of directories.
    pub dir_mode: Mode,
}

/// What a publish does when S3 cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhenUnavailable {
    /// It fails, and the kubelet tries again.
    Fail,
    /// It shows what this principal was allowed to read before.
    Cached,
}

/// Why attributes make no specification.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Something is wrong with them, whatever the configuration says.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// They are well formed, and the policy refuses them; the text names its key.
    #[error("{0}")]
    Denied(String),
}

impl SpecError {
    /// The kind of this failure.
    pub const fn kind(&self) -> FailureKind {
        match self {
            Self::Invalid(_) => FailureKind::Invalid,
            Self::Denied(_) => FailureKind::Denied,
        }
    }
}

impl SourceSpec {
    /// The source as text that is equal exactly when the sources are.
    pub fn canonical(&self) -> String {
        let selection = match &self.selection {
            Selection::Prefix(prefix) => json!({ "prefix": prefix.as_str() }),
            Selection::Key { key, version_id } => {
                json!({ "key": key.as_str(), "versionId": version_id.as_deref() })
            }
        };
        let path = self.path.as_ref().map(RelPath::as_str);
        json!([self.bucket.as_str(), selection, path, self.filter.canonical()]).to_string()
    }
}

impl VolumeSpec {
    /// Text that is equal exactly when two volumes of one principal ask S3 the same questions and
    /// judge the answers alike, so that one listing serves both.
    ///
    /// The endpoint is not part of it, since a principal belongs to one. Sources in another order
    /// give another key: that costs a request and never a wrong listing.
    pub fn sources_key(&self) -> String {
        let sources: Vec<String> = self.sources.iter().map(SourceSpec::canonical).collect();
        json!([
            sources,
            self.region,
            self.as_of.map(|moment| moment.to_string()),
            self.max_objects,
            self.allow_empty,
            self.expected_bucket_owner,
            self.request_payer,
        ])
        .to_string()
    }
}

#[cfg(test)]
mod tests;
