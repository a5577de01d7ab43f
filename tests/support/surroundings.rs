//! What the driver finds its own credentials in: an agent for containers (EKS Pod Identity) and an
//! instance's metadata service, as the AWS SDK asks them, on loopback.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use serde_json::json;

use super::{issuer::Port, s3::Rights};

/// What proves to the agent who asks.
pub(crate) const CONTAINER_TOKEN: &str = "MARKED-CONTAINER-TOKEN";

const SESSION: &str = "metadata-session";

/// Both services; they end when dropped.
pub(crate) struct Surroundings {
    desk: Arc<Desk>,
    port: Port,
}

struct Desk {
    rights: Arc<Rights>,
    life: Duration,
    given: AtomicU32,
}

impl Surroundings {
    /// Starts the services; what they give lives so long, and the embedded server knows it.
    pub(crate) fn start(rights: Arc<Rights>, life: Duration) -> Self {
        let desk = Arc::new(Desk { rights, life, given: AtomicU32::new(0) });
        let state = Arc::clone(&desk);
        let serve = move || Port::serve(|_| router(state));
        let port = std::thread::spawn(serve).join().expect("the services start");
        Self { desk, port }
    }

    /// Where they listen.
    pub(crate) fn url(&self) -> &str {
        self.port.url()
    }

    /// How often credentials were given.
    pub(crate) fn given(&self) -> u32 {
        self.desk.given.load(Ordering::SeqCst)
    }
}

fn router(desk: Arc<Desk>) -> Router {
    let token = || async { ([("x-aws-ec2-metadata-token-ttl-seconds", "21600")], SESSION) };
    let roles = "/latest/meta-data/iam/security-credentials/";
    Router::new()
        .route("/container", get(container))
        .route("/latest/api/token", put(token))
        .route(roles, get(|| async { "node" }))
        .route(&format!("{roles}node"), get(metadata))
        .with_state(desk)
}

async fn container(State(desk): State<Arc<Desk>>, headers: HeaderMap) -> Response {
    given(&desk, &headers, "authorization", CONTAINER_TOKEN)
}

async fn metadata(State(desk): State<Arc<Desk>>, headers: HeaderMap) -> Response {
    given(&desk, &headers, "x-aws-ec2-metadata-token", SESSION)
}

fn given(desk: &Desk, headers: &HeaderMap, header: &str, proof: &str) -> Response {
    if headers.get(header).is_none_or(|value| value != proof) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let number = desk.given.fetch_add(1, Ordering::SeqCst);
    let (key, secret) = (format!("ASIADRIVER{number}"), format!("MARKED-DRIVER-{number}"));
    desk.rights.add_credential(&key, &secret);
    let end = jiff::Timestamp::try_from(SystemTime::now() + desk.life);
    let credentials = json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": key,
        "SecretAccessKey": secret,
        "Token": "MARKED-DRIVER-TOKEN",
        "Expiration": end.expect("a time of this century").to_string(),
    });
    ([("content-type", "application/json")], credentials.to_string()).into_response()
}
