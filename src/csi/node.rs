//! The Node service.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    answer::{Answers, Subject},
    proto::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
        NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
        NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
        NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
        NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
        NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
        node_server::Node as NodeRpcs,
        node_service_capability::{self, Rpc, rpc},
        volume_usage::Unit,
    },
    request::{deadline, not_offered, publish, required},
    status::status,
};
use crate::{
    node::{Node, NodeError, VolumeStatus},
    telemetry::metrics::Metrics,
};

/// What this plugin offers; each obliges it to something, see the spec's `NodeGetCapabilities`.
const CAPABILITIES: [rpc::Type; 3] =
    [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition, rpc::Type::VolumeMountGroup];

/// Whether the kubelet has asked who this node is, which it does when it registers the plugin.
#[derive(Debug, Clone, Default)]
pub struct Registration(Arc<watch::Sender<bool>>);

impl Registration {
    fn note(&self) {
        self.0.send_replace(true);
    }

    /// Waits until it has.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn noted(&self) {
        // Fails only without a sender, and this is one.
        drop(self.0.subscribe().wait_for(|noted| *noted).await);
    }
}

/// Answers the kubelet.
#[derive(Debug, Clone)]
pub struct NodeService {
    /// Empty while the plugin starts.
    node: Arc<OnceLock<Node>>,
    node_id: String,
    registration: Registration,
    answers: Answers,
}

impl NodeService {
    /// The service of one node, which answers for volumes as soon as `node` is filled.
    pub fn new(node: Arc<OnceLock<Node>>, node_id: String, metrics: Arc<Metrics>) -> Self {
        let (registration, answers) = (Registration::default(), Answers::new(metrics));
        Self { node, node_id, registration, answers }
    }

    /// Tells when the kubelet knows the plugin.
    pub fn registration(&self) -> Registration {
        self.registration.clone()
    }

    fn node(&self) -> Result<&Node, Status> {
        let starting = || Status::unavailable("the node plugin is starting; try again");
        self.node.get().ok_or_else(starting)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err calls")]
fn failed(error: NodeError) -> Status {
    status(error.kind(), &error)
}

#[tonic::async_trait]
impl NodeRpcs for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let (volume_id, target) = (request.volume_id.clone(), request.target_path.clone());
        self.answers
            .answer("NodePublishVolume", subject(&volume_id, &target), async {
                let request = publish(request, deadline)?;
                self.node()?.publish(request).await.map_err(failed)?;
                Ok(NodePublishVolumeResponse {})
            })
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let NodeUnpublishVolumeRequest { volume_id, target_path } = request.into_inner();
        self.answers
            .answer("NodeUnpublishVolume", subject(&volume_id, &target_path), async {
                let id = required("volume_id", volume_id.clone())?;
                let target = required("target_path", target_path.clone())?;
                self.node()?.unpublish(&id, &target).await.map_err(failed)?;
                Ok(NodeUnpublishVolumeResponse {})
            })
            .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let NodeGetVolumeStatsRequest { volume_id, volume_path, .. } = request.into_inner();
        self.answers
            .answer("NodeGetVolumeStats", subject(&volume_id, &volume_path), async {
                let id = required("volume_id", volume_id.clone())?;
                let path = required("volume_path", volume_path.clone())?;
                self.node()?.status(&id, &path).await.map(stats).map_err(failed)
            })
            .await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |offered: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc { r#type: offered.into() })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        self.registration.note();
        let node_id = self.node_id.clone();
        Ok(Response::new(NodeGetInfoResponse { node_id, ..NodeGetInfoResponse::default() }))
    }

    async fn node_stage_volume(
        &self,
        _request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(not_offered("NodeStageVolume"))
    }

    async fn node_unstage_volume(
        &self,
        _request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(not_offered("NodeUnstageVolume"))
    }

    async fn node_expand_volume(
        &self,
        _request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(not_offered("NodeExpandVolume"))
    }
}

fn subject<'a>(volume: &'a str, target: &'a str) -> Subject<'a> {
    Subject { volume, target }
}

/// Bytes and inodes of the view, out of what the volume may show; and how it fares.
fn stats(status: VolumeStatus) -> NodeGetVolumeStatsResponse {
    let VolumeStatus { abnormal, summary, message } = status;
    let usage = |unit: Unit, used: u64, total: u64| {
        let (used, total) = (signed(used), signed(total.max(used)));
        VolumeUsage { unit: unit.into(), used, total, available: total - used }
    };
    let names = summary.objects + summary.directories;
    NodeGetVolumeStatsResponse {
        usage: vec![
            usage(Unit::Bytes, summary.bytes, summary.max_bytes.unwrap_or_default()),
            usage(Unit::Inodes, names, summary.max_objects),
        ],
        volume_condition: Some(VolumeCondition { abnormal, message }),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
