//! The Controller service: volumes of a StorageClass.

use std::{collections::HashMap, sync::Arc};

use tonic::{Request, Response, Status};
use zeroize::Zeroize;

use super::{
    answer::{Answers, Subject},
    capability,
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse,
        ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse,
        ControllerGetVolumeRequest, ControllerGetVolumeResponse, ControllerModifyVolumeRequest,
        ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
        ControllerPublishVolumeResponse, ControllerServiceCapability,
        ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest,
        CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest,
        DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
        GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
        ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
        VolumeCapability,
        controller_server::Controller as ControllerRpcs,
        controller_service_capability::{self, Rpc, rpc},
        validate_volume_capabilities_response::Confirmed,
    },
    request::{deadline, missing, not_offered, required},
    status::create_status,
};
use crate::{
    controller::{Controller, CreateRequest, VolumeId, attributes_of},
    telemetry::metrics::Metrics,
};

/// What this plugin offers. More would oblige it to keep state: volumes that can be listed, snapshots.
const CAPABILITIES: [rpc::Type; 1] = [rpc::Type::CreateDeleteVolume];

/// Answers the provisioner.
#[derive(Debug, Clone)]
pub struct ControllerService {
    controller: Arc<Controller>,
    answers: Answers,
}

impl ControllerService {
    /// The service of one controller.
    pub fn new(controller: Arc<Controller>, metrics: Arc<Metrics>) -> Self {
        Self { controller, answers: Answers::new(metrics) }
    }

    async fn create(
        &self,
        request: CreateRequest,
        asked: Asked,
    ) -> Result<CreateVolumeResponse, Status> {
        asked.check(&request.name)?;
        let created = self.controller.create(request).await;
        let created = created.map_err(|error| create_status(error.kind(), &error))?;
        let volume = Volume {
            // The claim's size is used: there is nothing to be allotted.
            capacity_bytes: 0,
            volume_id: created.id.to_string(),
            volume_context: created.attributes.into_iter().collect(),
            ..Volume::default()
        };
        Ok(CreateVolumeResponse { volume: Some(volume) })
    }
}

/// What a request to create asks for besides name, parameters and secrets.
struct Asked {
    capabilities: Vec<VolumeCapability>,
    capacity: Option<CapacityRange>,
    has_content: bool,
    is_mutable: bool,
}

impl Asked {
    /// Whether it can be had, in the order of the spec's fields. Topology is not asked about: every
    /// node reaches every volume.
    fn check(self, name: &str) -> Result<(), Status> {
        if name.is_empty() {
            return Err(missing("name"));
        }
        if self.capabilities.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        self.capabilities.into_iter().try_for_each(capability::offered)?;
        self.capacity.map_or(Ok(()), |range| check_capacity(&range))?;
        if self.has_content {
            return Err(Status::invalid_argument(
                "volume_content_source: is not offered; remove dataSource and dataSourceRef from the \
                 claim, and name the objects by bucket and prefix",
            ));
        }
        if self.is_mutable {
            return Err(Status::invalid_argument(
                "mutable_parameters: are not offered; remove volumeAttributesClassName from the claim",
            ));
        }
        Ok(())
    }
}

/// A volume takes nothing, so every size that can be is right.
fn check_capacity(range: &CapacityRange) -> Result<(), Status> {
    let CapacityRange { required_bytes, limit_bytes } = *range;
    if required_bytes < 0 || limit_bytes < 0 {
        return Err(Status::invalid_argument("capacity_range: must not be negative"));
    }
    if limit_bytes != 0 && limit_bytes < required_bytes {
        let text = format!(
            "capacity_range: limit_bytes {limit_bytes} must be at least required_bytes \
             {required_bytes}"
        );
        return Err(Status::out_of_range(text));
    }
    Ok(())
}

/// What of a request to validate does not hold of the volume, if anything.
fn objection(id: &VolumeId, request: &ValidateVolumeCapabilitiesRequest) -> Option<String> {
    let is_of = |map: &HashMap<String, String>| {
        let attributes = attributes_of(map.clone());
        map.is_empty() || id.is_of(&attributes)
    };
    if !is_of(&request.volume_context) {
        return Some("volume_context: is not the one that this volume was created with".into());
    }
    if !is_of(&request.parameters) {
        return Some(
            "parameters: are not those that this volume was created with, its variables filled in"
                .into(),
        );
    }
    if !request.mutable_parameters.is_empty() {
        return Some("mutable_parameters: are not offered".into());
    }
    let mut asked = request.volume_capabilities.iter().cloned().map(capability::offered);
    asked.find_map(Result::err).map(|status| status.message().to_owned())
}

fn validate(
    request: ValidateVolumeCapabilitiesRequest,
) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    if request.volume_capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    let id = VolumeId::parse(&request.volume_id).ok_or_else(|| {
        let text = "volume_id: is none that this controller has created";
        Status::not_found(text)
    })?;
    if let Some(message) = objection(&id, &request) {
        return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
    }
    let confirmed = Confirmed {
        volume_context: request.volume_context,
        volume_capabilities: request.volume_capabilities,
        parameters: request.parameters,
        mutable_parameters: request.mutable_parameters,
    };
    Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
}

/// Secrets that nobody needs.
fn overwrite(mut secrets: HashMap<String, String>) {
    secrets.values_mut().for_each(Zeroize::zeroize);
}

fn subject(volume: &str) -> Subject<'_> {
    Subject { volume, target: "" }
}

#[tonic::async_trait]
impl ControllerRpcs for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let deadline = deadline(request.metadata());
        let request = request.into_inner();
        let asked = Asked {
            capabilities: request.volume_capabilities,
            capacity: request.capacity_range,
            has_content: request.volume_content_source.is_some(),
            is_mutable: !request.mutable_parameters.is_empty(),
        };
        let name = request.name.clone();
        let parameters = request.parameters.into_iter().collect();
        let request = CreateRequest::new(request.name, parameters, request.secrets, deadline);
        self.answers.answer("CreateVolume", subject(&name), self.create(request, asked)).await
    }

    /// Objects in S3 stay as they are, whatever the claim's reclaim policy says.
    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let DeleteVolumeRequest { volume_id, secrets } = request.into_inner();
        overwrite(secrets);
        self.answers
            .answer("DeleteVolume", subject(&volume_id), async {
                self.controller.delete(&required("volume_id", volume_id.clone())?);
                Ok(DeleteVolumeResponse {})
            })
            .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let mut request = request.into_inner();
        let secrets = std::mem::take(&mut request.secrets);
        overwrite(secrets);
        let id = request.volume_id.clone();
        let answer = async { validate(request) };
        self.answers.answer("ValidateVolumeCapabilities", subject(&id), answer).await
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |offered: rpc::Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc { r#type: offered.into() })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_publish_volume(
        &self,
        _request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        Err(not_offered("ControllerPublishVolume"))
    }

    async fn controller_unpublish_volume(
        &self,
        _request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        Err(not_offered("ControllerUnpublishVolume"))
    }

    async fn list_volumes(
        &self,
        _request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Err(not_offered("ListVolumes"))
    }

    async fn get_capacity(
        &self,
        _request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        Err(not_offered("GetCapacity"))
    }

    async fn create_snapshot(
        &self,
        _request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        Err(not_offered("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(not_offered("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(not_offered("ListSnapshots"))
    }

    async fn get_snapshot(
        &self,
        _request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        Err(not_offered("GetSnapshot"))
    }

    async fn controller_expand_volume(
        &self,
        _request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        Err(not_offered("ControllerExpandVolume"))
    }

    async fn controller_get_volume(
        &self,
        _request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        Err(not_offered("ControllerGetVolume"))
    }

    async fn controller_modify_volume(
        &self,
        _request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        Err(not_offered("ControllerModifyVolume"))
    }
}
