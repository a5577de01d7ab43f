//! `PersistentVolume` objects, as far as two of them are told apart.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{ApiAccess, ApiError, ApiServer, segment};
use crate::failure::FailureKind;

/// Which volume a `PersistentVolume` stands for; all empty for one that is not of CSI.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistentVolume {
    /// The driver.
    pub driver: String,
    /// The volume's id.
    pub volume_handle: String,
    /// Its attributes, with those that Kubernetes adds.
    pub volume_attributes: BTreeMap<String, String>,
}

impl ApiAccess {
    /// The `PersistentVolume` of that name, if there is one.
    ///
    /// # Errors
    /// What the API server answers; it is asked once.
    ///
    /// # Cancellation
    /// Safe.
    pub async fn persistent_volume(
        &self,
        name: &str,
    ) -> Result<Option<PersistentVolume>, ApiError> {
        let server = ApiServer::open(self).await?;
        let path = format!("/api/v1/persistentvolumes/{}", segment(name));
        match server.get(&path).await {
            Ok(object) => Ok(Some(parse(&object))),
            Err(error) if error.kind() == FailureKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn parse(object: &Value) -> PersistentVolume {
    PersistentVolume::deserialize(&object["spec"]["csi"]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_told_by_driver_handle_and_attributes() {
        let csi = json!({ "driver": "d", "volumeHandle": "h", "volumeAttributes": { "a": "b" } });
        let volume = parse(&json!({ "spec": { "csi": csi } }));
        assert_eq!((&*volume.driver, &*volume.volume_handle), ("d", "h"));
        assert_eq!(volume.volume_attributes["a"], "b");
        let bare = parse(&json!({ "spec": { "csi": { "driver": "d", "volumeHandle": "h" } } }));
        assert_eq!(bare.volume_handle, "h");
        assert_eq!(parse(&json!({ "spec": { "nfs": {} } })), PersistentVolume::default());
    }
}
