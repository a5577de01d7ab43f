//! The Identity service.

use std::{fmt, sync::Arc};

use tonic::{Request, Response, Status};

use super::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
    identity_server::Identity,
    plugin_capability::{Service, Type, service},
};

/// Whether the plugin is ready to publish.
type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// Answers who this plugin is and whether it is ready.
#[derive(Clone)]
pub struct IdentityService {
    driver_name: String,
    ready: Ready,
    /// Whether the Controller service answers on the same socket.
    has_controller: bool,
}

impl fmt::Debug for IdentityService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityService")
            .field("driver_name", &self.driver_name)
            .finish_non_exhaustive()
    }
}

impl IdentityService {
    /// The service of a plugin of that name.
    pub fn new(driver_name: String, ready: Ready) -> Self {
        Self { driver_name, ready, has_controller: false }
    }

    /// The same, beside a Controller service.
    pub fn with_controller(self) -> Self {
        Self { has_controller: true, ..self }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..GetPluginInfoResponse::default()
        }))
    }

    /// The Controller service is told of where it answers: whoever asks a node plugin's socket for it
    /// would get UNIMPLEMENTED. All instances of each of the two plugins say the same.
    ///
    /// Source: CSI v1.13.0 spec.md, `GetPluginCapabilities`.
    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = Service { r#type: service::Type::ControllerService.into() };
        let capability = PluginCapability { r#type: Some(Type::Service(service)) };
        let capabilities = self.has_controller.then_some(capability).into_iter().collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some((self.ready)()) }))
    }
}
