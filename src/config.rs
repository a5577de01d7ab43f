//! The driver's configuration file: plain data with documented defaults.
//!
//! Every key is optional and every default stands in one place, the reader in `config/schema.rs`:
//! [`Config::default`] is what an empty file means. A wrong file is refused with all its problems
//! at once, each under its full path, because an operator who edits a `ConfigMap` should not learn of
//! them one crash at a time. The file is checked against itself only; whether a CA bundle can be
//! read or an attribute in `defaults` exists is for the modules that use them.
//!
//! docs/CONFIGURATION.md is the reference; a test holds it to the keys that the reader knows.

mod reader;
mod reload;
mod schema;
mod urls;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde_saphyr::{DuplicateKeyPolicy, UserMessageFormatter};
use thiserror::Error;
use url::Url;

use self::reader::Section;
pub use self::{
    reload::Reloaded,
    urls::{UrlPattern, UrlPatternError, is_aws},
};
use crate::{failure::FailureKind, problems::Problems, units::ByteSize};

/// The region of an endpoint that names none; what S3 itself assumes.
const DEFAULT_REGION: &str = "us-east-1";

/// What the configuration file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The name under which the kubelet knows the driver.
    pub driver_name: String,
    /// The kubelet's directory; target paths must lie below it.
    pub kubelet_dir: PathBuf,
    /// The endpoint as given; [`Config::default_endpoint_name`] says which one is used.
    pub default_endpoint: Option<String>,
    /// The S3 services by name.
    pub endpoints: BTreeMap<String, EndpointConfig>,
    /// The node's content cache.
    pub store: StoreConfig,
    /// The process that keeps FUSE mounts alive.
    pub keeper: KeeperConfig,
    /// How long reads of FUSE volumes wait.
    pub fuse: FuseConfig,
    /// The node-wide bounds on fetching.
    pub fetch: FetchConfig,
    /// How long S3's permission is remembered.
    pub authorization: AuthorizationConfig,
    /// What in a publish request may be believed.
    pub trust: TrustConfig,
    /// Where metrics are served.
    pub metrics: MetricsConfig,
    /// How the cluster is asked for what.
    pub kubernetes: KubernetesConfig,
    /// What volumes and namespaces may use.
    pub limits: Limits,
    /// Attributes of volumes that do not give them.
    pub defaults: Defaults,
    /// What pods may ask for.
    pub policy: Policy,
}

/// One S3 service.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointConfig {
    /// `http` or `https`, host and port; nothing else.
    pub url: Url,
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the bucket stands in the path instead of the host name.
    pub path_style: bool,
    /// PEM certificates that replace the system's roots for this endpoint.
    pub ca_bundle: Option<PathBuf>,
    /// Where and how pods' tokens are exchanged for credentials.
    pub sts: Option<StsConfig>,
    /// How long requests may take.
    pub timeouts: Timeouts,
    /// How often a request is repeated after a failure that may pass.
    pub retries: u32,
}

impl EndpointConfig {
    /// The endpoint at `url` with every other setting at its default.
    pub fn for_url(url: Url, region: &str) -> Self {
        Self {
            path_style: !is_aws(&url),
            url,
            region: region.to_owned(),
            ca_bundle: None,
            sts: None,
            timeouts: Timeouts::default(),
            retries: 5,
        }
    }

    /// AWS S3 in `region`.
    ///
    /// A region that makes no host name gets the host of `us-east-1`: the region may come from a
    /// pod, and must not choose a host outside AWS.
    #[expect(clippy::missing_panics_doc, reason = "the default region always makes a URL")]
    pub fn aws(region: &str) -> Self {
        let url = [region, DEFAULT_REGION].into_iter().find_map(|region| aws_url("s3", region));
        Self::for_url(url.expect("the default region makes a URL"), region)
    }
}

/// The token service of AWS in `region`; of `us-east-1` if the region makes no host name.
#[expect(clippy::missing_panics_doc, reason = "the default region always makes a URL")]
pub fn sts_of_aws(region: &str) -> Url {
    let url = [region, DEFAULT_REGION].into_iter().find_map(|region| aws_url("sts", region));
    url.expect("the default region makes a URL")
}

fn aws_url(service: &str, region: &str) -> Option<Url> {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    let label = region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let url = Url::parse(&format!("https://{service}.{region}.amazonaws.com{suffix}"));
    url.ok().filter(|_| label && !region.is_empty())
}

/// The exchange of tokens for credentials (`AssumeRoleWithWebIdentity`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StsConfig {
    /// The token service; `None` means the one of AWS, or at other endpoints the endpoint itself.
    pub url: Option<Url>,
    /// The role of volumes that name none.
    pub role_arn: Option<String>,
    /// The audience that tokens must have.
    pub audience: Option<String>,
}

/// How long a request may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// Until the connection stands, TLS included.
    pub connect: Duration,
    /// Without any progress.
    pub stall: Duration,
    /// From the first to the last byte of one response.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(20),
            total: Duration::from_mins(15),
        }
    }
}

/// The node's content cache on its two media.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// Whose volumes may show the same files.
    pub share: Sharing,
    /// The tmpfs.
    pub memory: MemoryStoreConfig,
    /// The directory on the cache disk.
    pub disk: DiskStoreConfig,
}

/// Whose volumes may show the same files, where content, owner and mode are the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All volumes of the node.
    #[default]
    Node,
    /// Those of one namespace.
    Namespace,
}

impl Sharing {
    const ALL: [Self; 2] = [Self::Node, Self::Namespace];

    /// The word that users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Namespace => "namespace",
        }
    }
}

impl FromStr for Sharing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sharing = Self::ALL.into_iter().find(|sharing| sharing.as_str() == text);
        sharing.ok_or_else(|| format!("{text:?} must be \"node\" or \"namespace\""))
    }
}

/// The store in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryStoreConfig {
    /// The size of the tmpfs.
    pub size: ByteSize,
    /// Whether content may reach swap where the kernel cannot prevent it.
    pub allow_swap: bool,
}

/// The store on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskStoreConfig {
    /// The directory, which belongs to the store alone.
    pub path: PathBuf,
    /// How much it may hold.
    pub size: ByteSize,
}

/// The process that holds FUSE descriptors while the node plugin restarts.
#[derive(Debug, Clone, PartialEq)]
pub struct KeeperConfig {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// How long it holds a descriptor that no plugin takes.
    pub hold_for: Duration,
}

/// How FUSE volumes are served: how long a read waits before it fails, and what a restart relies on.
#[derive(Debug, Clone, PartialEq)]
pub struct FuseConfig {
    /// For an S3 service that does not answer.
    pub wait_for_s3: Duration,
    /// For credentials, which return only with the next republish after a restart.
    pub wait_for_credentials: Duration,
    /// Whether new mounts rely on the kernel to send again what a node plugin took and did not answer
    /// before it ended, where it can.
    pub resend: bool,
}

/// Bounds on what the whole node fetches at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchConfig {
    /// S3 requests under way.
    pub requests: usize,
    /// Bytes received and not yet written to a store.
    pub bytes_in_flight: ByteSize,
    /// Larger objects are fetched as parallel ranges of this size; at most `bytes_in_flight`.
    pub part_size: ByteSize,
}

/// How long S3's word that a principal may read an object counts.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationConfig {
    /// For new volumes, while S3 answers.
    pub lifetime: Duration,
    /// For volumes with `whenUnavailable: cached`, while S3 does not answer.
    pub cached_for: Duration,
}

/// What in a publish request only the kubelet can have written.
#[derive(Debug, Clone, PartialEq)]
pub struct TrustConfig {
    /// Pod name, namespace and service account (needs `podInfoOnMount` in the `CSIDriver`).
    pub pod_info: bool,
    /// Service account tokens in the volume context (older kubelets).
    pub context_tokens: bool,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsConfig {
    /// The address of `/metrics` and `/healthz`; `None` serves neither.
    pub address: Option<SocketAddr>,
}

/// How the cluster is asked for what.
#[derive(Debug, Clone, PartialEq)]
pub struct KubernetesConfig {
    /// Whether the node plugin removes its startup taint from the node.
    pub remove_startup_taint: bool,
    /// The directory with token and CA of the plugin's service account.
    pub service_account: PathBuf,
}

/// What volumes and namespaces may use.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The largest `maxSize` that a volume may ask for.
    pub max_size: MaxSize,
    /// The largest `maxObjects` that a volume may ask for, and its default.
    pub max_objects: MaxObjects,
    /// The shortest `refresh` that a volume may ask for.
    pub min_refresh: Duration,
    /// What one namespace may use on one node.
    pub namespace: NamespaceLimits,
}

/// Bytes of one volume, by view. A `fuse` view has no such limit.
#[derive(Debug, Clone, PartialEq)]
pub struct MaxSize {
    /// In a `tmpfs` view.
    pub tmpfs: ByteSize,
    /// In a `disk` view, and its default.
    pub disk: ByteSize,
}

/// Objects of one volume, by view.
#[derive(Debug, Clone, PartialEq)]
pub struct MaxObjects {
    /// In a `tmpfs` view.
    pub tmpfs: u64,
    /// In a `disk` view.
    pub disk: u64,
    /// In a `fuse` view.
    pub fuse: u64,
}

/// What one namespace may use on one node; zero is no limit.
#[derive(Debug, Clone, PartialEq)]
pub struct NamespaceLimits {
    /// Published volumes.
    pub volumes: u64,
    /// Bytes in the memory store.
    pub memory: ByteSize,
    /// Bytes in the disk store.
    pub disk: ByteSize,
}

/// Attributes of volumes that do not give them, by name and not yet checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// For all volumes.
    pub attributes: BTreeMap<String, String>,
    /// For the volumes of one namespace; these win.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// What pods may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The URLs that `endpoint` and `stsEndpoint` may give instead of a configured name.
    pub endpoint_urls: Vec<UrlPattern>,
    /// The kinds of authentication that volumes may use.
    pub authentication: BTreeSet<AuthenticationKind>,
    /// Who may use the driver's own credentials for what; nobody if empty.
    pub driver_credentials: Vec<DriverGrant>,
}

/// One use of the driver's own credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverGrant {
    /// At this endpoint, by name; `None` means the default endpoint.
    pub endpoint: Option<String>,
    /// By pods of this namespace.
    pub namespace: String,
    /// With this service account; `None` means any.
    pub service_account: Option<String>,
    /// For this bucket.
    pub bucket: String,
    /// Below this directory-like prefix; `None` means the whole bucket.
    pub prefix: Option<String>,
}

/// Where a volume's credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthenticationKind {
    /// Keys in the Secret that comes with the publish request.
    Secret,
    /// The pod's service account token, exchanged for credentials.
    Pod,
    /// The driver's own credentials, where the policy grants them.
    Driver,
    /// None: requests are not signed.
    Anonymous,
}

impl AuthenticationKind {
    /// Every kind, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Secret, Self::Pod, Self::Driver, Self::Anonymous];

    /// The word that users write.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Pod => "pod",
            Self::Driver => "driver",
            Self::Anonymous => "anonymous",
        }
    }
}

/// The text names no kind of authentication.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} must be \"secret\", \"pod\", \"driver\" or \"anonymous\"")]
pub struct AuthenticationKindError(String);

impl AuthenticationKindError {
    /// Always [`FailureKind::Invalid`].
    pub const fn kind(&self) -> FailureKind {
        FailureKind::Invalid
    }
}

impl FromStr for AuthenticationKind {
    type Err = AuthenticationKindError;

    fn from_str(text: &str) -> Result<Self, AuthenticationKindError> {
        let kind = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| AuthenticationKindError(text.to_owned()))
    }
}

impl fmt::Display for AuthenticationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Config {
    /// Replaces the driver's name, as the command line may.
    ///
    /// # Errors
    /// A name that CSI does not allow.
    pub fn set_driver_name(&mut self, name: &str) -> Result<(), Problems> {
        match values::driver_name(name) {
            Ok(name) => self.driver_name = name,
            Err(text) => {
                let mut problems = Problems::default();
                problems.add("--driver-name", text);
                return Err(problems);
            }
        }
        Ok(())
    }

    /// Parses the text of a configuration file. An empty one gives the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with it. Broken YAML, a duplicate key included, is one problem.
    pub fn parse(yaml: &str) -> Result<Self, Problems> {
        whole(Self::understand(yaml, "configuration"))
    }

    /// Reads and parses the configuration file at `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it; an unreadable file or broken YAML is one problem that
    /// names the file.
    ///
    /// # Blocking
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Self::parse_file(path, &read(path))
    }

    /// Parses what [`read`] answered for the file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse_file(path: &Path, content: &Result<String, String>) -> Result<Self, Problems> {
        whole(Self::understand_file(path, content))
    }

    /// Likewise, for those who have more to check: what can be understood, with defaults where the
    /// file is wrong, and what is wrong. Of a file that is unreadable or no YAML, that is nothing.
    pub fn understand_file(
        path: &Path,
        content: &Result<String, String>,
    ) -> (Option<Self>, Problems) {
        let name = path.display().to_string();
        match content {
            Ok(yaml) => Self::understand(yaml, &name),
            Err(text) => (None, problem(&name, text.clone())),
        }
    }

    /// The endpoint of volumes that name none: `defaultEndpoint`, or else the only one there is.
    /// `None` with no endpoint at all means AWS S3.
    pub fn default_endpoint_name(&self) -> Option<&str> {
        let mut names = self.endpoints.keys();
        let only = names.next().filter(|_| names.next().is_none());
        self.default_endpoint.as_ref().or(only).map(String::as_str)
    }

    fn understand(yaml: &str, name: &str) -> (Option<Self>, Problems) {
        // Attribute defaults are text: `0444` must not become 444, nor `yes` true.
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            leading_zero_numbers_as_strings: true,
            underscored_numbers_as_strings: true,
            strict_booleans: true,
        };
        let document = match serde_saphyr::from_str_with_options(yaml, options) {
            Ok(document) => document,
            Err(error) => {
                let text = error.without_snippet().render_with_formatter(&UserMessageFormatter);
                return (None, problem(name, format!("must be valid YAML: {text}")));
            }
        };
        let mut problems = Problems::default();
        let config = Section::read(String::new(), document, &mut problems, schema::config);
        (Some(config), problems)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("every key is optional")
    }
}

/// The text of the file at `path`, or why it cannot be had: two looks at a file that is wrong in one
/// way are equal.
///
/// # Errors
/// What the system answers, for people.
///
/// # Blocking
/// Reads a file.
pub fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("failed to read the file: {error}"))
}

/// What was understood, if nothing is wrong.
fn whole((config, problems): (Option<Config>, Problems)) -> Result<Config, Problems> {
    match config {
        Some(config) => problems.into_result(config),
        None => Err(problems),
    }
}

fn problem(field: &str, text: String) -> Problems {
    let mut problems = Problems::default();
    problems.add(field, text);
    problems
}

#[cfg(test)]
mod tests;
