//! Against a server that speaks TLS and HTTP and keeps one node, as the API server does: objects as
//! JSON, patches that apply wholly or not at all, refusals as a Status.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path as Captured, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
    server::TlsStream,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{ApiError, ApiServer, taint::remove_startup_taint};
use crate::{failure::FailureKind, task::spawn_owned};

const DRIVER: &str = "csi.s3view.dev";

/// What the server keeps, and what it was asked.
#[derive(Default)]
struct Cluster {
    drivers: Option<Value>,
    taints: Option<Value>,
    /// Taints that somebody else sets right after the node was read.
    next_taints: Option<Value>,
    refuse: bool,
    /// Method, path and token of each request.
    requests: Vec<String>,
}

type Shared = Arc<Mutex<Cluster>>;

/// The server, and a client that knows its certificate.
struct Setting {
    cluster: Shared,
    api: ApiServer,
    account: tempfile::TempDir,
    _server: AbortOnDropHandle<()>,
}

impl Setting {
    async fn new(cluster: Cluster) -> Self {
        let cluster = Arc::new(Mutex::new(cluster));
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let (address, server) =
            serve(&certificate, &key.serialize_pem(), Arc::clone(&cluster)).await;
        let account = tempfile::tempdir().unwrap();
        std::fs::write(account.path().join("ca.crt"), certificate).unwrap();
        std::fs::write(account.path().join("token"), "first\n").unwrap();
        let api = ApiServer::new(format!("https://{address}"), account.path()).unwrap();
        Self { cluster, api, account, _server: server }
    }

    fn taints(&self) -> Option<Value> {
        self.cluster.lock().taints.clone()
    }
}

struct Tls(TcpListener, TlsAcceptor);

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (stream, peer) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn serve(
    certificate: &str,
    key: &str,
    cluster: Shared,
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/apis/storage.k8s.io/v1/csinodes/{name}", get(csi_node))
        .route("/api/v1/nodes/{name}", get(node).patch(patch_node))
        .with_state(cluster);
    let tls = Tls(listener, TlsAcceptor::from(Arc::new(config)));
    (address, spawn_owned(async move { axum::serve(tls, router).await.unwrap() }))
}

/// Keeps account, and refuses what is to be refused.
fn asked(cluster: &mut Cluster, what: &str, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let token = headers["authorization"].to_str().unwrap();
    cluster.requests.push(format!("{what} {token}"));
    if cluster.refuse { Err(Box::new(status(StatusCode::FORBIDDEN, "no role"))) } else { Ok(()) }
}

fn status(code: StatusCode, message: &str) -> Response {
    (code, json!({ "kind": "Status", "message": message }).to_string()).into_response()
}

async fn csi_node(
    State(cluster): State<Shared>,
    Captured(name): Captured<String>,
    headers: HeaderMap,
) -> Response {
    let mut cluster = cluster.lock();
    if let Err(refused) = asked(&mut cluster, &format!("csinode {name}"), &headers) {
        return *refused;
    }
    match &cluster.drivers {
        Some(drivers) => json!({ "spec": { "drivers": drivers } }).to_string().into_response(),
        None => status(StatusCode::NOT_FOUND, "there is no such CSINode"),
    }
}

async fn node(
    State(cluster): State<Shared>,
    Captured(name): Captured<String>,
    headers: HeaderMap,
) -> Response {
    let mut cluster = cluster.lock();
    if let Err(refused) = asked(&mut cluster, &format!("node {name}"), &headers) {
        return *refused;
    }
    let mut spec = json!({});
    if let Some(taints) = &cluster.taints {
        spec["taints"] = taints.clone();
    }
    if let Some(next) = cluster.next_taints.take() {
        cluster.taints = Some(next);
    }
    json!({ "spec": spec }).to_string().into_response()
}

/// Applies what the plugin sends: a test, and a change of the same list.
async fn patch_node(
    State(cluster): State<Shared>,
    Captured(name): Captured<String>,
    headers: HeaderMap,
    patch: String,
) -> Response {
    let mut cluster = cluster.lock();
    if let Err(refused) = asked(&mut cluster, &format!("patch {name}"), &headers) {
        return *refused;
    }
    assert_eq!(headers["content-type"], "application/json-patch+json");
    let operations: Vec<Value> = serde_json::from_str(&patch).unwrap();
    for operation in &operations {
        assert_eq!(operation["path"], "/spec/taints");
        match operation["op"].as_str().unwrap() {
            "test" if Some(&operation["value"]) == cluster.taints.as_ref() => {}
            "test" => return status(StatusCode::UNPROCESSABLE_ENTITY, "the test failed"),
            "replace" => cluster.taints = Some(operation["value"].clone()),
            "remove" => cluster.taints = None,
            other => panic!("{other}"),
        }
    }
    "{}".into_response()
}

fn ours(effect: &str) -> Value {
    json!({ "key": "csi.s3view.dev/agent-not-ready", "effect": effect })
}

fn other(key: &str) -> Value {
    json!({ "key": key, "value": "true", "effect": "NoSchedule" })
}

fn registered() -> Value {
    json!([{ "name": "other.example.com" }, { "name": DRIVER, "nodeID": "node-1.local" }])
}

async fn remove(api: ApiServer, stop: &CancellationToken) {
    let (node, driver) = ("node-1.local".to_owned(), DRIVER.to_owned());
    remove_startup_taint(api, node, driver, stop.clone()).await;
}

#[tokio::test]
async fn the_taint_goes_once_the_driver_is_registered() {
    let taints = json!([other("a"), ours("NoSchedule"), ours("NoExecute"), other("b")]);
    let setting =
        Setting::new(Cluster { taints: Some(taints.clone()), ..Cluster::default() }).await;
    let (cluster, stop) = (Arc::clone(&setting.cluster), CancellationToken::new());
    let Setting { api, account: _account, _server, .. } = setting;
    let removing = remove(api, &stop);
    tokio::pin!(removing);
    // There is no CSINode yet, and then one without the driver.
    for (asked, drivers) in [(1, json!([])), (2, registered())] {
        while cluster.lock().requests.len() < asked {
            tokio::select! {
                () = &mut removing => panic!("the driver is not registered"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(cluster.lock().taints, Some(taints.clone()));
        cluster.lock().drivers = Some(drivers);
    }
    removing.await;
    assert_eq!(cluster.lock().taints, Some(json!([other("a"), other("b")])));
    let requests = cluster.lock().requests.clone();
    assert_eq!(
        requests[2..],
        ["csinode", "node", "patch"].map(|it| format!("{it} node-1.local Bearer first"))
    );
}

#[tokio::test]
async fn taints_that_change_meanwhile_are_kept() {
    let cluster = Cluster {
        drivers: Some(registered()),
        taints: Some(json!([ours("NoSchedule")])),
        next_taints: Some(json!([ours("NoSchedule"), other("new")])),
        ..Cluster::default()
    };
    let Setting { cluster, api, account: _account, _server } = Setting::new(cluster).await;
    remove(api, &CancellationToken::new()).await;
    assert_eq!(cluster.lock().taints, Some(json!([other("new")])));
    let patches = cluster.lock().requests.iter().filter(|it| it.starts_with("patch")).count();
    assert_eq!(patches, 2, "the first is refused, and nothing of it applies");
}

#[tokio::test]
async fn the_last_taint_leaves_no_list() {
    let cluster = Cluster {
        drivers: Some(registered()),
        taints: Some(json!([ours("NoSchedule")])),
        ..Cluster::default()
    };
    let Setting { cluster, api, account: _account, _server } = Setting::new(cluster).await;
    remove(api, &CancellationToken::new()).await;
    assert_eq!(cluster.lock().taints, None);
}

#[tokio::test]
async fn a_node_without_the_taint_is_not_touched() {
    let taints = Some(json!([other("a")]));
    let cluster =
        Cluster { drivers: Some(registered()), taints: taints.clone(), ..Cluster::default() };
    let Setting { cluster, api, account: _account, _server } = Setting::new(cluster).await;
    remove(api, &CancellationToken::new()).await;
    let cluster = cluster.lock();
    assert_eq!(cluster.taints, taints);
    assert!(cluster.requests.iter().all(|it| !it.starts_with("patch")), "{:?}", cluster.requests);
}

#[tokio::test]
async fn a_refusal_says_what_was_refused_and_why() {
    let cluster = Cluster { refuse: true, taints: Some(json!([])), ..Cluster::default() };
    let setting = Setting::new(cluster).await;
    let error = setting.api.get("/api/v1/nodes/node-1").await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    let told = "the API server answered 403 Forbidden to GET /api/v1/nodes/node-1: no role";
    assert_eq!(error.to_string(), told);
    assert_eq!(setting.taints(), Some(json!([])));
}

/// Refusals do not end it, and it ends when it is told to.
#[tokio::test]
async fn it_goes_on_until_it_is_stopped() {
    let setting = Setting::new(Cluster { refuse: true, ..Cluster::default() }).await;
    let (cluster, stop) = (Arc::clone(&setting.cluster), CancellationToken::new());
    let Setting { api, account: _account, _server, .. } = setting;
    let asked_twice = async {
        while cluster.lock().requests.len() < 2 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    tokio::join!(remove(api, &stop), asked_twice);
}

#[tokio::test]
async fn the_token_is_the_one_of_the_moment() {
    let setting = Setting::new(Cluster::default()).await;
    setting.api.get("/api/v1/nodes/a").await.unwrap();
    std::fs::write(setting.account.path().join("token"), "second").unwrap();
    setting.api.get("/api/v1/nodes/a").await.unwrap();
    assert_eq!(setting.cluster.lock().requests, ["node a Bearer first", "node a Bearer second"]);
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_gets_no_token() {
    let (setting, stranger) =
        (Setting::new(Cluster::default()).await, Setting::new(Cluster::default()).await);
    let base = stranger.api.base.clone();
    let api = ApiServer::new(base, setting.account.path()).unwrap();
    let error = api.get("/api/v1/nodes/a").await.unwrap_err();
    assert!(matches!(error, ApiError::Unreachable { .. }), "{error}");
    assert!(stranger.cluster.lock().requests.is_empty());
}

#[test]
fn without_a_token_it_says_which_file_is_missing() {
    let account = tempfile::tempdir().unwrap();
    let error = ApiServer::new("https://127.0.0.1:1".to_owned(), account.path()).unwrap_err();
    assert!(error.to_string().contains("ca.crt"), "{error}");
    assert_eq!(error.kind(), FailureKind::Precondition);
}
