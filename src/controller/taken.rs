//! Whether the cluster has another volume of a name.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{ControllerError, VolumeId, attributes_of, record::difference};
use crate::cluster::{ApiAccess, PersistentVolume};

/// How long the answer may take: it is worth less than the volume.
const LIMIT: Duration = Duration::from_secs(2);

/// A volume that is about to be created.
pub(super) struct Volume<'a> {
    pub(super) name: &'a str,
    pub(super) id: &'a VolumeId,
    pub(super) attributes: &'a BTreeMap<String, String>,
}

impl Volume<'_> {
    /// Asks for the `PersistentVolume` of that name. Without an answer the name counts as free.
    ///
    /// # Errors
    /// [`ControllerError::Incompatible`].
    ///
    /// # Cancellation
    /// Safe.
    pub(super) async fn check(
        &self,
        cluster: &ApiAccess,
        driver: &str,
        deadline: Instant,
    ) -> Result<(), ControllerError> {
        let deadline = deadline.min(Instant::now() + LIMIT);
        match timeout_at(deadline, cluster.persistent_volume(self.name)).await {
            Ok(Ok(Some(found))) => self.compare(found, driver),
            Ok(Ok(None)) => Ok(()),
            Ok(Err(error)) => {
                tracing::info!(%error, "the PersistentVolume of a name could not be looked up");
                Ok(())
            }
            Err(_) => {
                tracing::info!("the PersistentVolume of a name was not looked up in time");
                Ok(())
            }
        }
    }

    fn compare(&self, found: PersistentVolume, driver: &str) -> Result<(), ControllerError> {
        if found.driver == driver && found.volume_handle == self.id.as_str() {
            return Ok(());
        }
        let different = difference(self.attributes, &attributes_of(found.volume_attributes));
        let difference = if found.driver != driver {
            format!("its driver is {:?}", found.driver)
        } else if different.is_empty() {
            format!("its volumeHandle is {:?}", found.volume_handle)
        } else {
            different
        };
        Err(ControllerError::Incompatible { difference })
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("csi.s3view.dev", None, &[("prefix", "a")], None; "the same")]
    #[test_case("csi.s3view.dev", Some("h"), &[("prefix", "b")], Some("prefix is \"a\" and was \"b\""); "another")]
    #[test_case("csi.s3view.dev", Some("h"), &[("prefix", "a"), ("storage.kubernetes.io/x", "y")], Some("volumeHandle is \"h\""); "a static one")]
    #[test_case("other.dev", Some("h"), &[], Some("its driver is \"other.dev\""); "of another driver")]
    fn a_name_is_taken_by_another_volume(
        driver: &str,
        handle: Option<&str>,
        attributes: &[(&str, &str)],
        expected: Option<&str>,
    ) {
        let own = BTreeMap::from([("prefix".to_owned(), "a".to_owned())]);
        let id = VolumeId::new("pvc-1", &own);
        let volume = Volume { name: "pvc-1", id: &id, attributes: &own };
        let text = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        let found = PersistentVolume {
            driver: driver.to_owned(),
            volume_handle: handle.unwrap_or(id.as_str()).to_owned(),
            volume_attributes: attributes.iter().map(text).collect(),
        };
        match (volume.compare(found, "csi.s3view.dev"), expected) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
