//! The plugins as processes: build, spawn, drain.

mod controller;
mod keeper;
pub mod program;
mod reload;

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

pub use self::{
    controller::{ControllerApp, ControllerRunError},
    keeper::{KeepError, KeepOptions, keep},
    program::{LogArguments, PluginArguments, PluginOptions},
    reload::ConfigFile,
};
use crate::{
    cluster::{ApiAccess, StartupTaint, Taint},
    config::{Config, Sharing},
    csi::{IdentityService, NodeService, Registration, ServeError, Service, Socket, serve},
    failure::full_message,
    node::{Node, StartError},
    socket::BindError,
    task::{Tasks, blocking},
    telemetry::{http, metrics::Metrics},
};

/// How long calls that run may take to finish after the signal. Below the 30 s that Kubernetes
/// gives a pod, so that the plugin ends by itself.
const GRACE: Duration = Duration::from_secs(20);

/// What the command line says.
#[derive(Debug)]
pub struct NodeOptions {
    /// The CSI socket.
    pub socket: PathBuf,
    /// This node's name.
    pub node_id: String,
    /// Where the plugin keeps its state.
    pub state_dir: PathBuf,
    /// What the configuration file says.
    pub config: Config,
    /// The file, if there is one: it is followed.
    pub config_file: Option<ConfigFile>,
}

/// A node plugin that is bound and ready to serve.
#[derive(Debug)]
pub struct NodeApp {
    options: NodeOptions,
    socket: Socket,
    telemetry: Option<TcpListener>,
    metrics: Arc<Metrics>,
}

/// Where start-up stands; what `Probe` and `/healthz` say.
#[derive(Debug, Clone, Default)]
struct Ready(Arc<AtomicBool>);

impl Ready {
    fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    fn probe(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let ready = Arc::clone(&self.0);
        Arc::new(move || ready.load(Ordering::Acquire))
    }
}

impl NodeApp {
    /// Binds everything that can be refused, before anything is changed on the node.
    ///
    /// # Errors
    /// A live socket, or a taken metrics address.
    pub async fn build(options: NodeOptions) -> Result<Self, BuildError> {
        let socket = Socket::bind(&options.socket)?;
        let telemetry = bind_telemetry(&options.config).await?;
        Ok(Self { options, socket, telemetry, metrics: Arc::default() })
    }

    /// Takes over the node's volumes and serves until `stop`; then finishes what runs, for at most
    /// 20 s, and leaves every mount in place.
    ///
    /// # Errors
    /// [`RunError`], from start-up or from serving.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self { options, socket, telemetry, metrics } = self;
        let NodeOptions { node_id, state_dir, config, config_file, socket: path } = options;
        if config.store.share == Sharing::Namespace && !config.trust.pod_info {
            tracing::warn!(
                "store.share is \"namespace\" without trust.podInfo: a volume shares files with no \
                 other unless its pod's token comes in secrets"
            );
        }
        let (ready, tasks) = (Ready::default(), Tasks::default());
        serve_telemetry(telemetry, &metrics, &ready, &tasks);
        let identity = IdentityService::new(config.driver_name.clone(), ready.probe());
        let slot = Arc::new(OnceLock::new());
        let taint = taint(&config, &node_id);
        let service = NodeService::new(Arc::clone(&slot), node_id, Arc::clone(&metrics));
        let registration = service.registration();
        // Served from the first moment, so that Probe can say "not ready yet".
        let service = Service::Node(service);
        let serving = serve(socket, identity, service, stop.clone().cancelled_owned());
        tokio::pin!(serving);
        let starting = {
            let metrics = Arc::clone(&metrics);
            blocking(move || Node::start(config, &state_dir, metrics))
        };
        let node = tokio::select! {
            node = starting => node?,
            outcome = &mut serving => return Ok(outcome?),
        };
        let node = slot.get_or_init(|| node);
        if let Some(file) = config_file {
            let node = node.clone();
            let reload = move |config: &Config| node.reload(config);
            tasks.spawn(file.follow(reload, metrics, tasks.token().clone()));
        }
        ready.set(true);
        tracing::info!(socket = %path.display(), "ready");
        if let Some(taint) = taint {
            tasks.spawn(untaint(taint, registration, tasks.token().clone()));
        }
        tokio::select! {
            // Without a connection, serving ends in the same moment; what runs beside is still to
            // be waited for.
            biased;
            () = stop.cancelled() => {}
            outcome = &mut serving => return Ok(outcome?),
        }
        ready.set(false);
        let finishing = finish(&mut serving, node, &tasks);
        let outcome = timeout(GRACE, finishing).await.unwrap_or_else(|_| {
            tracing::warn!("something was still running when time was up");
            Ok(())
        });
        tracing::info!("stopped; mounts stay");
        Ok(outcome?)
    }
}

/// The taint that keeps pods from the node until now, if it is ours to remove.
fn taint(config: &Config, node: &str) -> Option<StartupTaint> {
    let account = Some(config.kubernetes.service_account.clone());
    let access =
        account.filter(|_| config.kubernetes.remove_startup_taint).map(ApiAccess::of_pod)?;
    let access = access.map_err(|error| {
        tracing::error!(%error, "kubernetes.removeStartupTaint is set, and there is no cluster");
    });
    let (node, driver) = (node.to_owned(), config.driver_name.clone());
    Some(StartupTaint { node, driver, access: access.ok()? })
}

/// Removes the taint once the kubelet knows the plugin. That it cannot be removed ends nothing: volumes
/// of pods that tolerate it, or were there before, are served.
async fn untaint(taint: StartupTaint, registration: Registration, stop: CancellationToken) {
    let removing = async {
        registration.noted().await;
        taint.remove().await
    };
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        outcome = removing => outcome,
    };
    let (node, key) = (&taint.node, taint.key());
    match outcome {
        Ok(Taint::Removed) => tracing::info!(node, key, "the startup taint is removed"),
        Ok(Taint::Absent) => tracing::debug!(node, key, "there is no startup taint"),
        Err(error) => tracing::error!(
            node,
            key,
            error = full_message(&error),
            "failed to remove the startup taint, so pods stay away; allow get and patch of this node to \
             the plugin's service account, or remove it with kubectl taint node"
        ),
    }
}

/// Where `/metrics` and `/healthz` will be served, if anywhere.
async fn bind_telemetry(config: &Config) -> Result<Option<TcpListener>, BuildError> {
    let Some(address) = config.metrics.address else { return Ok(None) };
    let bound = http::bind(address).await;
    Ok(Some(bound.map_err(|error| BuildError::Metrics { address, error })?))
}

/// Serves them as a task.
fn serve_telemetry(
    listener: Option<TcpListener>,
    metrics: &Arc<Metrics>,
    ready: &Ready,
    tasks: &Tasks,
) {
    let Some(listener) = listener else { return };
    let (metrics, health) = (Arc::clone(metrics), ready.probe());
    let end = tasks.token().clone();
    tasks.spawn(async move {
        if let Err(error) = http::serve(listener, metrics, health, end).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    });
}

/// Lets calls finish for half the grace, then ends background work, so that calls that wait for it
/// answer.
async fn finish(
    mut serving: impl Future<Output = Result<(), ServeError>> + Unpin,
    node: &Node,
    tasks: &Tasks,
) -> Result<(), ServeError> {
    tracing::info!("stopping: no new calls, finishing what runs");
    let outcome = if let Ok(outcome) = timeout(GRACE / 2, &mut serving).await {
        outcome
    } else {
        node.drain().await;
        serving.await
    };
    node.drain().await;
    tasks.drain().await;
    outcome
}

/// Why the plugin cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The CSI socket.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The metrics address.
    #[error("failed to listen on metrics.address {address}")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
}

/// Why the plugin ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not take over the node's state.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The gRPC transport failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
}
