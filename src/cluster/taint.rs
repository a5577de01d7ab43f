//! The startup taint: keeps pods from a node until the plugin is there.
//!
//! A node that joins may get pods before the plugin has registered, and each of them waits and retries.
//! Whoever wants to avoid that lets nodes join with the taint `<driver>/agent-not-ready`; the plugin
//! takes it away once the kubelet knows it. Nothing else of the node is touched: the patch names the
//! whole list of taints that was read, so that a change made meanwhile is never undone, and the list is
//! read again.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use serde_json::{Value, json};

use super::{ApiAccess, ApiError, ApiServer, segment};
use crate::source::Transient;

/// How often it is tried again, over some minutes.
const TRIES: usize = 12;

/// The taint of one driver on one node.
#[derive(Debug, Clone)]
pub struct StartupTaint {
    /// The node's name.
    pub node: String,
    /// The driver's name.
    pub driver: String,
    /// How the cluster is asked.
    pub access: ApiAccess,
}

/// What became of a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taint {
    /// It was there, and is gone.
    Removed,
    /// It was not there.
    Absent,
}

impl StartupTaint {
    /// Its key.
    pub fn key(&self) -> String {
        format!("{}/agent-not-ready", self.driver)
    }

    /// Removes it, with each effect that it has; tried again for some minutes.
    ///
    /// # Errors
    /// The last attempt's; the taint may still be there.
    ///
    /// # Cancellation
    /// Safe; it may or may not be removed then.
    pub async fn remove(&self) -> Result<Taint, ApiError> {
        (|| self.remove_once())
            .retry(pauses())
            .when(ApiError::is_transient)
            .notify(|error, pause| {
                tracing::debug!(%error, ?pause, "the startup taint could not be removed yet");
            })
            .await
    }

    async fn remove_once(&self) -> Result<Taint, ApiError> {
        let server = ApiServer::open(&self.access).await?;
        let path = format!("/api/v1/nodes/{}", segment(&self.node));
        let node = server.get(&path).await?;
        match changes(&node, &self.key()) {
            None => Ok(Taint::Absent),
            Some(changes) => server.patch(&path, &changes).await.map(|_| Taint::Removed),
        }
    }
}

fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(30))
        .with_max_times(TRIES)
        .with_jitter()
}

/// What removes the taint `key` from a node that is as it was read; `None` if it has none.
fn changes(node: &Value, key: &str) -> Option<Value> {
    const PLACE: &str = "/spec/taints";
    let taints = node.pointer(PLACE)?.as_array()?;
    let others: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != key).collect();
    if others.len() == taints.len() {
        return None;
    }
    let change = if others.is_empty() {
        json!({ "op": "remove", "path": PLACE })
    } else {
        json!({ "op": "replace", "path": PLACE, "value": others })
    };
    Some(json!([{ "op": "test", "path": PLACE, "value": taints }, change]))
}

#[cfg(test)]
mod tests {
    use backon::BackoffBuilder;

    use super::*;

    const KEY: &str = "csi.s3view.dev/agent-not-ready";

    fn node(taints: &Value) -> Value {
        json!({ "metadata": { "name": "n" }, "spec": { "podCIDR": "10.0.0.0/24", "taints": taints } })
    }

    #[test]
    fn other_taints_stay_as_they_are() {
        let other =
            json!({ "key": "a", "effect": "NoExecute", "timeAdded": "2026-01-31T12:00:00Z" });
        let ours = |effect: &str| json!({ "key": KEY, "effect": effect });
        let taints = json!([ours("NoSchedule"), other, ours("NoExecute")]);
        let expected = json!([
            { "op": "test", "path": "/spec/taints", "value": taints },
            { "op": "replace", "path": "/spec/taints", "value": [other] },
        ]);
        assert_eq!(changes(&node(&taints), KEY), Some(expected));
    }

    #[test]
    fn the_last_taint_takes_the_list_with_it() {
        let taints = json!([{ "key": KEY, "effect": "NoSchedule" }]);
        let expected = json!([
            { "op": "test", "path": "/spec/taints", "value": taints },
            { "op": "remove", "path": "/spec/taints" },
        ]);
        assert_eq!(changes(&node(&taints), KEY), Some(expected));
    }

    #[test]
    fn it_is_tried_for_some_minutes_and_not_for_ever() {
        let pauses: Vec<Duration> = pauses().build().collect();
        assert_eq!(pauses.len(), TRIES);
        assert!((60..600).contains(&pauses.iter().sum::<Duration>().as_secs()), "{pauses:?}");
    }

    #[test]
    fn without_the_taint_nothing_is_changed() {
        let others = json!([{ "key": "csi.other.dev/agent-not-ready", "effect": "NoSchedule" }]);
        assert_eq!(changes(&node(&others), KEY), None);
        assert_eq!(changes(&json!({ "spec": {} }), KEY), None);
        assert_eq!(changes(&json!(null), KEY), None);
    }
}
