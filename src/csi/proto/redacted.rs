//! How messages that can carry a secret print.
//!
//! The rule: no value of a secrets map, no mount flag and no service account token appears in
//! `{:?}`, however deep the message is nested. Marking single log lines would be the obvious
//! alternative, but it fails with the first line that nobody marked. Each implementation takes its
//! message apart completely, so a new field does not compile until somebody decided how it prints.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use super::{
    ControllerExpandVolumeRequest, ControllerModifyVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, DeleteVolumeRequest, GetSnapshotRequest, ListSnapshotsRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    ValidateVolumeCapabilitiesRequest, Volume, validate_volume_capabilities_response::Confirmed,
    volume_capability::MountVolume,
};

/// The key of the volume context under which a kubelet may send service account tokens.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A collection of which only the size is shown: even a key may be a secret put in the wrong place.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} redacted]", self.0)
    }
}

/// A volume context without the pod's tokens, in the order of its keys.
struct Context<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (key, value) in self.0.iter().collect::<BTreeMap<_, _>>() {
            map.entry(key, if key == TOKENS { &"[redacted]" } else { value });
        }
        map.finish()
    }
}

/// Implements `Debug` from all fields of a message: the open ones, its context, what is hidden.
macro_rules! redacted {
    ($(
        $message:ident { $($open:ident),* } $(context $context:ident)? $(hidden $hidden:ident)?;
    )*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { $($open,)* $($context,)? $($hidden)? } = self;
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($open), $open))*
                    $(.field(stringify!($context), &Context($context)))?
                    $(.field(stringify!($hidden), &Hidden($hidden.len())))?
                    .finish()
            }
        }
    )*};
}

redacted! {
    MountVolume { fs_type, volume_mount_group } hidden mount_flags;
    Volume { volume_id, capacity_bytes, content_source, accessible_topology }
        context volume_context;

    CreateVolumeRequest {
        name, capacity_range, volume_capabilities, parameters, volume_content_source,
        accessibility_requirements, mutable_parameters
    } hidden secrets;
    DeleteVolumeRequest { volume_id } hidden secrets;
    ControllerPublishVolumeRequest { volume_id, node_id, volume_capability, readonly }
        context volume_context hidden secrets;
    ControllerUnpublishVolumeRequest { volume_id, node_id } hidden secrets;
    ValidateVolumeCapabilitiesRequest {
        volume_id, volume_capabilities, parameters, mutable_parameters
    } context volume_context hidden secrets;
    Confirmed { volume_capabilities, parameters, mutable_parameters } context volume_context;
    ControllerModifyVolumeRequest { volume_id, mutable_parameters } hidden secrets;
    ControllerExpandVolumeRequest { volume_id, capacity_range, volume_capability } hidden secrets;

    CreateSnapshotRequest { source_volume_id, name, parameters } hidden secrets;
    DeleteSnapshotRequest { snapshot_id } hidden secrets;
    ListSnapshotsRequest { max_entries, starting_token, source_volume_id, snapshot_id }
        hidden secrets;
    GetSnapshotRequest { snapshot_id } hidden secrets;

    NodeStageVolumeRequest { volume_id, publish_context, staging_target_path, volume_capability }
        context volume_context hidden secrets;
    NodePublishVolumeRequest {
        volume_id, publish_context, staging_target_path, target_path, volume_capability, readonly
    } context volume_context hidden secrets;
    NodeExpandVolumeRequest {
        volume_id, volume_path, capacity_range, staging_target_path, volume_capability
    } hidden secrets;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::{VolumeCapability, volume_capability::AccessType};

    const SECRET: &str = "hunter2";

    fn secrets() -> HashMap<String, String> {
        HashMap::from([("secretKey".into(), SECRET.into()), (SECRET.into(), "misplaced".into())])
    }

    fn context() -> HashMap<String, String> {
        HashMap::from([("bucket".into(), "b".into()), (TOKENS.into(), SECRET.into())])
    }

    fn capability() -> VolumeCapability {
        let mount_flags = vec![format!("password={SECRET}")];
        let mount = MountVolume { mount_flags, ..MountVolume::default() };
        VolumeCapability { access_type: Some(AccessType::Mount(mount)), access_mode: None }
    }

    /// The `{:?}` of each message, every secret field of it filled.
    macro_rules! printed {
        ($($message:ident { $($field:ident: $value:expr),* })*) => {
            [$((
                stringify!($message),
                format!("{:?}", $message { $($field: $value,)* ..$message::default() }),
            )),*]
        };
    }

    #[test]
    fn no_message_prints_a_secret() {
        let messages = printed! {
            MountVolume { mount_flags: vec![SECRET.into()] }
            Volume { volume_context: context() }
            CreateVolumeRequest { secrets: secrets(), volume_capabilities: vec![capability()] }
            DeleteVolumeRequest { secrets: secrets() }
            ControllerPublishVolumeRequest {
                secrets: secrets(),
                volume_context: context(),
                volume_capability: Some(capability())
            }
            ControllerUnpublishVolumeRequest { secrets: secrets() }
            ValidateVolumeCapabilitiesRequest {
                secrets: secrets(),
                volume_context: context(),
                volume_capabilities: vec![capability()]
            }
            Confirmed { volume_context: context(), volume_capabilities: vec![capability()] }
            ControllerModifyVolumeRequest { secrets: secrets() }
            ControllerExpandVolumeRequest {
                secrets: secrets(),
                volume_capability: Some(capability())
            }
            CreateSnapshotRequest { secrets: secrets() }
            DeleteSnapshotRequest { secrets: secrets() }
            ListSnapshotsRequest { secrets: secrets() }
            GetSnapshotRequest { secrets: secrets() }
            NodeStageVolumeRequest {
                secrets: secrets(),
                volume_context: context(),
                volume_capability: Some(capability())
            }
            NodePublishVolumeRequest {
                secrets: secrets(),
                volume_context: context(),
                volume_capability: Some(capability())
            }
            NodeExpandVolumeRequest { secrets: secrets(), volume_capability: Some(capability()) }
        };
        for (name, printed) in messages {
            assert!(printed.contains("redacted]"), "{name}: {printed}");
            assert!(!printed.contains(SECRET), "{name}: {printed}");
        }
    }

    #[test]
    fn what_is_no_secret_stays_readable() {
        let request = NodePublishVolumeRequest {
            volume_id: "v1".into(),
            secrets: secrets(),
            volume_context: context(),
            ..NodePublishVolumeRequest::default()
        };
        let printed = format!("{request:?}");
        assert!(printed.starts_with(r#"NodePublishVolumeRequest { volume_id: "v1""#), "{printed}");
        assert!(printed.contains(r#""bucket": "b""#), "{printed}");
        assert!(printed.ends_with("secrets: [2 redacted] }"), "{printed}");
    }
}
