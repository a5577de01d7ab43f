//! Volumes of a StorageClass: what a claim becomes, decided without keeping anything.
//!
//! S3 is never written to, so creating a volume is a check and a calculation: the parameters with the
//! claim's names filled in are the attributes that the node will get, parsed by the node's own parser,
//! and the volume id is a digest of them. Whatever creates the same volume again, on any replica and
//! after any restart, gets the same id; deleting one is nothing but forgetting it.
//!
//! Refused here is what would fail on every node for a reason that is known now. What depends on the
//! pod (its token, its service account) and on the moment (how much there is) is left to the node.

mod check;
mod error;
mod id;
mod record;
mod taken;
mod variables;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::RwLock;
use tokio::time::Instant;

pub use self::{error::ControllerError, id::VolumeId};
use self::{record::Record, variables::Names};
use crate::{
    cluster::ApiAccess,
    config::{Config, Reloaded},
    problems::Problems,
    source::s3::S3Clients,
    telemetry::metrics::Metrics,
    volume::{SpecContext, SpecError, VolumeSecrets, VolumeSpec, check_defaults, is_reserved},
};

/// The most that a volume's attributes may take, keys and values together, in bytes.
/// Source: CSI v1.13.0 spec.md, "Size Limits".
const MAX_CONTEXT: usize = 4 << 10;

/// A volume to be created.
#[derive(Debug)]
pub struct CreateRequest {
    /// The name that the volume is known by: of its `PersistentVolume`.
    pub name: String,
    parameters: BTreeMap<String, String>,
    secrets: Result<VolumeSecrets, Problems>,
    deadline: Instant,
}

impl CreateRequest {
    /// Takes a request over: the parameters of the StorageClass, with what the provisioner says about
    /// the claim; the provisioner's Secret, which is parsed and overwritten at once, whatever becomes
    /// of the rest; and when the call must have been answered.
    pub fn new(
        name: String,
        parameters: BTreeMap<String, String>,
        secrets: HashMap<String, String>,
        deadline: Instant,
    ) -> Self {
        Self { name, parameters, secrets: VolumeSecrets::parse(secrets), deadline }
    }
}

/// A volume that was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: VolumeId,
    /// Its attributes, as the node's publish takes them.
    pub attributes: BTreeMap<String, String>,
}

/// Creates volumes.
#[derive(Debug)]
pub struct Controller {
    config: RwLock<Arc<Config>>,
    clients: S3Clients,
    record: Record,
    /// The cluster, if it can be asked.
    cluster: Option<ApiAccess>,
}

/// What is wrong with a configuration for a controller, beyond what its text tells: names of
/// attributes, and CA bundles.
///
/// # Blocking
/// Reads files.
pub fn check(config: &Config) -> Problems {
    let mut problems = Problems::default();
    if let Err(found) = check_defaults(&config.defaults) {
        problems.extend(found);
    }
    if let Err(found) = S3Clients::new(config, Arc::default()) {
        problems.extend(found);
    }
    problems
}

impl Controller {
    /// A controller with that configuration, which asks `cluster`, if there is one, whether names are
    /// taken.
    ///
    /// # Errors
    /// As [`check()`].
    ///
    /// # Blocking
    /// Reads files.
    pub fn new(
        config: Config,
        metrics: Arc<Metrics>,
        cluster: Option<ApiAccess>,
    ) -> Result<Self, Problems> {
        check_defaults(&config.defaults)?;
        let clients = S3Clients::new(&config, metrics)?;
        let (config, record) = (RwLock::new(Arc::new(config)), Record::default());
        Ok(Self { config, clients, record, cluster })
    }

    /// Creates a volume, or finds that it would be the same again.
    ///
    /// # Errors
    /// See [`ControllerError`].
    ///
    /// # Cancellation
    /// Safe; nothing is left.
    pub async fn create(&self, request: CreateRequest) -> Result<Created, ControllerError> {
        let CreateRequest { name, parameters, secrets, deadline } = request;
        let config = Arc::clone(&self.config.read());
        let names = Names::of(&name, &parameters);
        let (attributes, unresolved) = variables::resolve(&parameters, &names);
        let spec = spec(&attributes, &config, names.namespace());
        let (spec, secrets) = all(unresolved, spec, secrets)?;
        check_context(&attributes)?;
        let id = VolumeId::new(&name, &attributes);
        let is_known = self.record.check(&id, &attributes)?;
        if let Some(cluster) = self.cluster.as_ref().filter(|_| !is_known) {
            let volume = taken::Volume { name: &name, id: &id, attributes: &attributes };
            volume.check(cluster, &config.driver_name, deadline).await?;
        }
        check::can_be_listed(&self.clients, &spec, &secrets, deadline).await?;
        self.record.add(&id, &attributes)?;
        Ok(Created { id, attributes })
    }

    /// Forgets a volume, whatever id that is. Its objects in S3 are none of ours.
    pub fn delete(&self, id: &str) {
        if let Some(id) = VolumeId::parse(id) {
            self.record.forget(&id);
        }
    }

    /// Puts into force what of `file` can be, for every volume that is created from now on.
    ///
    /// # Errors
    /// Attributes in `defaults` that do not exist.
    pub fn reload(&self, file: &Config) -> Result<Reloaded, Problems> {
        check_defaults(&file.defaults)?;
        let mut config = self.config.write();
        let (next, outcome) = config.take_over(file);
        if outcome.in_force.contains(&"policy") {
            self.clients.set_policy(&next.policy);
        }
        *config = Arc::new(next);
        Ok(outcome)
    }
}

/// The attributes that a map of CSI holds: Kubernetes' own keys are none, and empty text is no value.
pub fn attributes_of(map: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let is_attribute = |(key, value): &(String, String)| !is_reserved(key) && !value.is_empty();
    map.into_iter().filter(is_attribute).collect()
}

/// Parses attributes as the node will. What its request brings cannot be told yet, so the kind of
/// authentication of a volume that names none is left open.
fn spec(
    attributes: &BTreeMap<String, String>,
    config: &Config,
    namespace: Option<&str>,
) -> Result<VolumeSpec, SpecError> {
    let now = SystemTime::now();
    let context = SpecContext { config, namespace, mount_group: None, brings: None, now };
    VolumeSpec::parse(attributes, &context)
}

/// Both results, or everything that is wrong.
fn all(
    mut problems: Problems,
    spec: Result<VolumeSpec, SpecError>,
    secrets: Result<VolumeSecrets, Problems>,
) -> Result<(VolumeSpec, VolumeSecrets), ControllerError> {
    let is_resolved = problems.is_empty();
    match (spec, secrets) {
        (Ok(spec), Ok(secrets)) if is_resolved => return Ok((spec, secrets)),
        (Err(error @ SpecError::Denied(_)), Ok(_)) if is_resolved => return Err(error.into()),
        (spec, secrets) => {
            match spec {
                Ok(_) => {}
                Err(SpecError::Invalid(found)) => problems.extend_with_others(found),
                Err(SpecError::Denied(text)) => problems.add("policy", text),
            }
            if let Err(found) = secrets {
                problems.extend(found);
            }
        }
    }
    Err(problems.into())
}

fn check_context(attributes: &BTreeMap<String, String>) -> Result<(), ControllerError> {
    let size: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size <= MAX_CONTEXT {
        return Ok(());
    }
    let mut problems = Problems::default();
    let text = format!("take {size} bytes, and CSI allows {MAX_CONTEXT}; make sources shorter");
    problems.add("parameters", text);
    Err(problems.into())
}
