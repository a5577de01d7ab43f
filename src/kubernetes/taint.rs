//! The startup taint: keeps pods from a new node until the driver can mount their volumes there.
//!
//! Who makes nodes gives them the taint `<driver>/agent-not-ready`; the plugin takes it away once the
//! kubelet has registered the driver, which the `CSINode` tells. Without it a pod may be bound to a node
//! first, and then fails with "driver name not found" until the plugin is there.
//!
//! Only that taint is removed, whatever else changes on the node meanwhile: the patch holds the taints as
//! they were read, and applies to nothing else.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{ApiError, ApiServer};
use crate::failure::{FailureKind, full_message};

/// The pause after the first look, doubled up to [`LONGEST`]: registering takes a second or so, and where
/// it never comes, a thousand nodes should not ask every second.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// What names of nodes may have in a path.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.');

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The kubelet does not know the driver yet.
    NotRegistered,
    /// The taint is gone now.
    Removed,
    /// There was none.
    Absent,
}

/// The key of the taint.
pub fn startup_taint(driver: &str) -> String {
    format!("{driver}/agent-not-ready")
}

/// Removes the startup taint of `driver` from `node` once the driver is registered there. Goes on trying
/// until then, or until `stop`; the log tells each new reason why it cannot.
///
/// # Cancellation
/// The taint may be gone or not.
pub async fn remove_startup_taint(
    api: ApiServer,
    node: String,
    driver: String,
    stop: CancellationToken,
) {
    let taint = startup_taint(&driver);
    let (mut pause, mut told) = (SHORTEST, String::new());
    loop {
        let progress = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            progress = advance(&api, &node, &driver) => progress,
        };
        match progress {
            Ok(Progress::Removed) => return tracing::info!(taint, "the startup taint is removed"),
            Ok(Progress::Absent) => return tracing::debug!(taint, "there is no startup taint"),
            Ok(Progress::NotRegistered) => {}
            Err(error) => {
                let reason = full_message(&error);
                if reason != told {
                    tracing::warn!(taint, error = reason, "failed to remove the startup taint");
                    told = reason;
                }
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(pause) => pause = LONGEST.min(pause * 2),
        }
    }
}

async fn advance(api: &ApiServer, node: &str, driver: &str) -> Result<Progress, ApiError> {
    let name = utf8_percent_encode(node, NAME);
    match api.get(&format!("/apis/storage.k8s.io/v1/csinodes/{name}")).await {
        Ok(csi_node) if has_driver(&csi_node, driver) => {}
        Ok(_) => return Ok(Progress::NotRegistered),
        Err(error) if error.kind() == FailureKind::NotFound => return Ok(Progress::NotRegistered),
        Err(error) => return Err(error),
    }
    let path = format!("/api/v1/nodes/{name}");
    let Some(change) = removal(&api.get(&path).await?, &startup_taint(driver)) else {
        return Ok(Progress::Absent);
    };
    api.patch(&path, &change).await?;
    Ok(Progress::Removed)
}

fn has_driver(csi_node: &Value, driver: &str) -> bool {
    let mut drivers = csi_node["spec"]["drivers"].as_array().into_iter().flatten();
    drivers.any(|it| it["name"] == driver)
}

/// The patch that takes the taint with this `key` from a node, whatever its effects; `None` if there is none.
fn removal(node: &Value, key: &str) -> Option<Value> {
    let taints = node["spec"]["taints"].as_array()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint["key"] != key).collect();
    if others.len() == taints.len() {
        return None;
    }
    // A list that changed meanwhile is read again, and not overwritten.
    let unchanged = json!({ "op": "test", "path": "/spec/taints", "value": taints });
    let change = if others.is_empty() {
        json!({ "op": "remove", "path": "/spec/taints" })
    } else {
        json!({ "op": "replace", "path": "/spec/taints", "value": others })
    };
    Some(json!([unchanged, change]))
}
