//! The controller plugin as a process.

use std::sync::Arc;

use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{BuildError, GRACE, Ready, bind_telemetry, program::PluginOptions, serve_telemetry};
use crate::{
    cluster::ApiAccess,
    config::Config,
    controller::Controller,
    csi::{ControllerService, IdentityService, ServeError, Service, Socket, serve},
    problems::Problems,
    task::{Tasks, blocking},
    telemetry::metrics::Metrics,
};

/// A controller plugin that is bound and ready to serve.
#[derive(Debug)]
pub struct ControllerApp {
    options: PluginOptions,
    socket: Socket,
    telemetry: Option<TcpListener>,
}

/// Why the controller plugin ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerRunError {
    /// The configuration asks for what is not there.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The gRPC transport failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl ControllerApp {
    /// Binds everything that can be refused.
    ///
    /// # Errors
    /// A live socket, or a taken metrics address.
    pub async fn build(options: PluginOptions) -> Result<Self, BuildError> {
        let socket = Socket::bind(&options.socket)?;
        let telemetry = bind_telemetry(&options.config).await?;
        Ok(Self { options, socket, telemetry })
    }

    /// Serves until `stop`, then finishes what runs, for at most 20 s.
    ///
    /// # Errors
    /// [`ControllerRunError`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), ControllerRunError> {
        let Self { options, socket, telemetry } = self;
        let PluginOptions { config, config_file, socket: path } = options;
        let (metrics, ready, tasks) =
            (Arc::<Metrics>::default(), Ready::default(), Tasks::default());
        serve_telemetry(telemetry, &metrics, &ready, &tasks);
        let identity =
            IdentityService::new(config.driver_name.clone(), ready.probe()).with_controller();
        let controller = {
            let metrics = Arc::clone(&metrics);
            let start = move || {
                let account = config.kubernetes.service_account.clone();
                let cluster = ApiAccess::of_pod_with_account(account);
                Controller::new(config, metrics, cluster)
            };
            Arc::new(blocking(start).await?)
        };
        let service = ControllerService::new(Arc::clone(&controller), Arc::clone(&metrics));
        let service = Service::Controller(service);
        if let Some(file) = config_file {
            let reload = move |config: &Config| controller.reload(config);
            tasks.spawn(file.follow(reload, metrics, tasks.token().clone()));
        }
        ready.set(true);
        tracing::info!(socket = %path.display(), "ready");
        let serving = serve(socket, identity, service, stop.clone().cancelled_owned());
        tokio::pin!(serving);
        tokio::select! {
            // As in the node plugin: serving may end in the same moment.
            biased;
            () = stop.cancelled() => {}
            outcome = &mut serving => return Ok(outcome?),
        }
        ready.set(false);
        let finishing = async {
            let outcome = serving.await;
            tasks.drain().await;
            outcome
        };
        let outcome = timeout(GRACE, finishing).await.unwrap_or_else(|_| {
            tracing::warn!("something was still running when time was up");
            Ok(())
        });
        tracing::info!("stopped");
        Ok(outcome?)
    }
}
