//! A Kubernetes API server with one node, over TLS: what plugins ask of it, answered as the real one
//! does (JSON patch with tests, bearer tokens, reasons in JSON).

use std::{collections::BTreeMap, path::Path, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path as Segments, State},
    http::{HeaderMap, Method, StatusCode, header::AUTHORIZATION, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    issuer::Port,
    tls::{Authority, Door, Wants},
};

/// The token of the plugin's service account.
const TOKEN: &str = "MARKED-API-TOKEN";

/// The server and its door; they end when dropped.
pub(crate) struct ApiServer {
    desk: Arc<Desk>,
    door: Door,
    authority: Authority,
    _port: Port,
}

#[derive(Default)]
struct Desk {
    name: String,
    node: Mutex<Value>,
    calls: Mutex<Vec<Method>>,
    /// How many more calls are refused, and how.
    refusals: Mutex<(u32, StatusCode)>,
    /// Taints that somebody adds, one after each time that the node was read.
    meanwhile: Mutex<Vec<Value>>,
    /// `PersistentVolumes` by name.
    volumes: Mutex<BTreeMap<String, Value>>,
}

impl ApiServer {
    /// Starts a server that knows a node of that name with these taints.
    pub(crate) fn start(name: &str, taints: &Value) -> Self {
        let node = json!({
            "kind": "Node",
            "metadata": { "name": name },
            "spec": { "podCIDR": "10.0.0.0/24", "taints": taints },
        });
        let desk = Desk { name: name.to_owned(), node: Mutex::new(node), ..Desk::default() };
        let (desk, authority) = (Arc::new(desk), Authority::new("kubernetes"));
        let state = Arc::clone(&desk);
        let routes = Router::new()
            .route("/api/v1/nodes/{name}", get(answer).patch(answer))
            .route("/api/v1/persistentvolumes/{name}", get(volume));
        let serve = move || Port::serve(|_| routes.with_state(state));
        let port = std::thread::spawn(serve).join().expect("the server starts");
        let door = Door::open(port.url(), &authority, Wants::Maybe(&authority));
        Self { desk, door, authority, _port: port }
    }

    /// Lays out a service account, as the kubelet does in a pod.
    pub(crate) fn account(&self, directory: &Path) {
        std::fs::create_dir_all(directory).expect("a writable directory");
        self.authority.write(&directory.join("ca.crt"));
        std::fs::write(directory.join("token"), format!("{TOKEN}\n"))
            .expect("a writable directory");
    }

    /// The environment of a pod.
    pub(crate) fn env(&self) -> [(&str, String); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
            ("KUBERNETES_SERVICE_PORT", self.door.port().to_string()),
        ]
    }

    /// Refuses so many calls from now on.
    pub(crate) fn refuse(&self, times: u32, status: StatusCode) {
        *self.desk.refusals.lock() = (times, status);
    }

    /// Adds a taint as soon as the node was read; of several, one each time.
    pub(crate) fn meanwhile(&self, taint: Value) {
        self.desk.meanwhile.lock().push(taint);
    }

    /// Makes a `PersistentVolume` of CSI.
    pub(crate) fn add_volume(&self, name: &str, csi: &Value) {
        let volume = json!({ "metadata": { "name": name }, "spec": { "csi": csi } });
        self.desk.volumes.lock().insert(name.to_owned(), volume);
    }

    /// The taints of the node, if it has a list of them.
    pub(crate) fn taints(&self) -> Value {
        self.desk.node.lock()["spec"]["taints"].clone()
    }

    /// What was asked.
    pub(crate) fn calls(&self) -> Vec<Method> {
        self.desk.calls.lock().clone()
    }
}

fn refused(status: StatusCode, message: &str) -> Response {
    let reason = json!({ "kind": "Status", "status": "Failure", "message": message });
    json_answer(status, &reason)
}

fn json_answer(status: StatusCode, value: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// What is wrong with a call, whatever it is about.
fn refusal(desk: &Desk, headers: &HeaderMap) -> Option<Response> {
    if headers.get(AUTHORIZATION).is_none_or(|it| it != format!("Bearer {TOKEN}").as_str()) {
        return Some(refused(StatusCode::UNAUTHORIZED, "Unauthorized"));
    }
    let (times, status) = &mut *desk.refusals.lock();
    (*times > 0).then(|| {
        *times -= 1;
        refused(*status, "it is forbidden: User \"s3view\" cannot do this")
    })
}

async fn volume(
    State(desk): State<Arc<Desk>>,
    Segments(name): Segments<String>,
    headers: HeaderMap,
) -> Response {
    desk.calls.lock().push(Method::GET);
    if let Some(refusal) = refusal(&desk, &headers) {
        return refusal;
    }
    match desk.volumes.lock().get(&name) {
        Some(volume) => json_answer(StatusCode::OK, volume),
        None => refused(StatusCode::NOT_FOUND, "persistentvolumes not found"),
    }
}

async fn answer(
    State(desk): State<Arc<Desk>>,
    Segments(name): Segments<String>,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    desk.calls.lock().push(method.clone());
    if let Some(refusal) = refusal(&desk, &headers) {
        return refusal;
    }
    if name != desk.name {
        return refused(StatusCode::NOT_FOUND, "nodes not found");
    }
    let mut node = desk.node.lock();
    if method == Method::GET {
        let answer = json_answer(StatusCode::OK, &node);
        let taint = desk.meanwhile.lock().pop();
        if let (Some(taint), Some(taints)) = (taint, node["spec"]["taints"].as_array_mut()) {
            taints.push(taint);
        }
        return answer;
    }
    if headers.get(CONTENT_TYPE).is_none_or(|it| it != "application/json-patch+json") {
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is of another type");
    }
    let patch: Vec<Value> = serde_json::from_slice(&body).expect("a JSON patch");
    let mut patched = node.clone();
    if !patch.iter().all(|operation| apply(&mut patched, operation)) {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "the server rejected our request");
    }
    *node = patched;
    json_answer(StatusCode::OK, &node)
}

/// Carries out one operation of RFC 6902, of those that a plugin may need.
fn apply(object: &mut Value, operation: &Value) -> bool {
    let path = operation["path"].as_str().expect("a path");
    let (parent, name) = path.rsplit_once('/').expect("a pointer");
    match operation["op"].as_str() {
        Some("test") => object.pointer(path) == Some(&operation["value"]),
        Some("replace") => object.pointer_mut(path).is_some_and(|place| {
            *place = operation["value"].clone();
            true
        }),
        Some("remove") => {
            let parent = object.pointer_mut(parent).and_then(Value::as_object_mut);
            parent.is_some_and(|parent| parent.remove(name).is_some())
        }
        other => panic!("an operation {other:?}"),
    }
}
