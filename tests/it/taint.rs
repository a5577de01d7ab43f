//! The startup taint: removed from the plugin's own node once the kubelet knows the plugin.

use axum::http::{Method, StatusCode};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, tree},
    refresh::eventually,
    support::apiserver::ApiServer,
};

const KEY: &str = "csi.s3view.dev/agent-not-ready";

fn ours(effect: &str) -> Value {
    json!({ "key": KEY, "effect": effect })
}

fn other(key: &str) -> Value {
    json!({ "key": key, "value": "x", "effect": "NoSchedule" })
}

impl Fixture {
    /// Starts the plugin anew in a pod of a cluster whose node has these taints.
    async fn in_cluster(&mut self, more: &str, prepare: impl FnOnce(&ApiServer)) -> ApiServer {
        let taints = json!([other("a"), ours("NoSchedule"), ours("NoExecute")]);
        let server = ApiServer::start("node-1", &taints);
        prepare(&server);
        // As in a pod, whose volumes have mountPropagation: Bidirectional.
        for directory in [self.home.kubelet_dir(), self.home.state_dir()] {
            for flags in [MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::MS_SHARED | MsFlags::MS_REC]
            {
                mount(Some(&directory), &directory, None::<&str>, flags, None::<&str>).unwrap();
            }
        }
        let account = self.home.path().join("account");
        server.account(&account);
        let env = server.env();
        let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.home.set_env(&env);
        let account = account.display();
        self.reconfigure(&format!("kubernetes: {{ {more} serviceAccount: {account} }}\n")).await;
        server
    }
}

const ON: &str = "removeStartupTaint: true,";

pub(crate) async fn the_taint_goes_once_the_kubelet_knows_the_plugin(mut fixture: Fixture) {
    let server = fixture.in_cluster(ON, |_| {}).await;
    // Ready, and not registered yet: a probe is no kubelet.
    assert!(fixture.kubelet.is_ready().await);
    assert_eq!(server.calls(), [Method::GET; 0]);
    fixture.kubelet.info().await.unwrap();
    let gone = || (server.taints() == json!([other("a")])).then_some(());
    eventually("the taint goes, and only that", gone).await;
    assert_eq!(server.calls(), [Method::GET, Method::PATCH]);
    // A kubelet that restarts asks again.
    fixture.kubelet.info().await.unwrap();
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(server.calls().len(), 2);
    assert!(fixture.home.log().contains("the startup taint is removed"));
}

pub(crate) async fn a_change_meanwhile_is_not_undone(mut fixture: Fixture) {
    let prepare = |server: &ApiServer| {
        server.meanwhile(other("b"));
        server.meanwhile(other("c"));
    };
    let server = fixture.in_cluster(ON, prepare).await;
    fixture.kubelet.info().await.unwrap();
    let expected = json!([other("a"), other("c"), other("b")]);
    eventually("the taint goes", || (server.taints() == expected).then_some(())).await;
    assert_eq!(server.calls().len(), 6, "each conflict is one more look");
}

pub(crate) async fn a_refusal_is_tried_again_and_hurts_nothing(mut fixture: Fixture) {
    let prepare = |server: &ApiServer| server.refuse(3, StatusCode::FORBIDDEN);
    let server = fixture.in_cluster(ON, prepare).await;
    fixture.put_certificates().await;
    fixture.kubelet.info().await.unwrap();
    let target = fixture.publish(&fixture.pod("certs")).await;
    assert_eq!(tree(&target)["keystore.jks"], "keystore");
    let gone = || (server.taints() == json!([other("a")])).then_some(());
    eventually("the right is given, and the taint goes", gone).await;
}

pub(crate) async fn what_cannot_be_removed_ends_nothing(mut fixture: Fixture) {
    // A service account of nobody: nothing to wait for.
    let server = fixture.in_cluster(ON, |_| {}).await;
    std::fs::remove_file(fixture.home.path().join("account/token")).unwrap();
    fixture.kubelet.info().await.unwrap();
    let told = || fixture.home.log().contains("failed to remove the startup taint").then_some(());
    eventually("it is told", told).await;
    assert!(fixture.home.log().contains("account/token"));
    assert_eq!(server.calls(), [Method::GET; 0]);
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    // Stopping waits for no answer of a server that gives none.
    let server = fixture
        .in_cluster(ON, |server| server.refuse(u32::MAX, StatusCode::SERVICE_UNAVAILABLE))
        .await;
    fixture.kubelet.info().await.unwrap();
    eventually("it is tried", || (!server.calls().is_empty()).then_some(())).await;
    fixture.plugin.take().unwrap().stop();
}

pub(crate) async fn by_default_the_cluster_is_not_asked(mut fixture: Fixture) {
    let server = fixture.in_cluster("", |_| {}).await;
    fixture.kubelet.info().await.unwrap();
    fixture.put_certificates().await;
    fixture.publish(&fixture.pod("certs")).await;
    fixture.plugin.take().unwrap().stop();
    assert_eq!(server.calls(), [Method::GET; 0]);
}
