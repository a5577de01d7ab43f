//! The API server of Kubernetes, asked in the name of the pod's own service account.
//!
//! The node plugin asks it for one thing only, and only if it is told to: see [`taint`]. So this is two
//! kinds of requests on JSON, and no client library with a type for every object.
//!
//! The token is read anew for each request, because the kubelet replaces it; no message shows it.

pub mod taint;

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, crypto::ring};
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::{certificate::CaBundle, failure::FailureKind, task::blocking};

/// Where the kubelet puts what a pod needs to speak to the API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than any node or `CSINode`: what etcd holds of one object is 1.5 MiB.
const LARGEST: usize = 8 << 20;

/// Why the API server could not be asked, or what it refused.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Kubernetes sets this variable in every container.
    #[error("{0} is not set: there is no API server outside of a pod")]
    NotInPod(&'static str),
    /// The service account's files.
    #[error("failed to read {}; the pod needs the token of its service account", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The token or the certificates are no such.
    #[error("{} {rule}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What it must be.
        rule: String,
    },
    /// No whole answer.
    #[error("failed to ask the API server: {method} {path}")]
    Unreachable {
        /// The request's method.
        method: Method,
        /// What was asked for.
        path: String,
        /// Why.
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that says no.
    #[error("the API server answered {status} to {method} {path}: {message}")]
    Refused {
        /// The request's method.
        method: Method,
        /// What was asked for.
        path: String,
        /// The answer's status.
        status: StatusCode,
        /// What the server says about it.
        message: String,
    },
}

impl ApiError {
    /// What kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NotInPod(_) | Self::Read { .. } | Self::Unusable { .. } => {
                FailureKind::Precondition
            }
            Self::Unreachable { .. } => FailureKind::Unavailable,
            Self::Refused { status, .. } => match *status {
                StatusCode::UNAUTHORIZED => FailureKind::Unauthenticated,
                StatusCode::FORBIDDEN => FailureKind::Denied,
                StatusCode::NOT_FOUND => FailureKind::NotFound,
                // Somebody else changed the object.
                StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => FailureKind::Stale,
                _ => FailureKind::Unavailable,
            },
        }
    }
}

/// An API server, and who asks.
pub struct ApiServer {
    client: Client<HttpsConnector<HttpConnector>, String>,
    /// Scheme, host and port.
    base: String,
    token: PathBuf,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("base", &self.base).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// The API server of the cluster in whose pod this runs.
    ///
    /// # Errors
    /// This is no pod, or it has no token of a service account.
    ///
    /// # Blocking
    /// Reads two files.
    pub fn of_this_pod() -> Result<Self, ApiError> {
        let variable = |name| std::env::var(name).map_err(|_| ApiError::NotInPod(name));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let host = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            Ok(IpAddr::V4(_)) | Err(_) => host,
        };
        Self::new(format!("https://{host}:{port}"), Path::new(SERVICE_ACCOUNT))
    }

    /// The API server at `base`, asked with the files `token` and `ca.crt` in `account`.
    fn new(base: String, account: &Path) -> Result<Self, ApiError> {
        let path = account.join("ca.crt");
        let pem = read(&path)?;
        let roots = CaBundle::parse(&pem).map_err(|rule| ApiError::Unusable { path, rule })?;
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(Arc::clone(roots.roots()))
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let mut client = Client::builder(TokioExecutor::new());
        let client = client.pool_timer(TokioTimer::new()).build(connector);
        let token = account.join("token");
        authorization(&token)?;
        Ok(Self { client, base, token })
    }

    /// An object.
    ///
    /// # Errors
    /// See [`ApiError`]; `NotFound` if there is none.
    pub async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.ask(Method::GET, path, None).await
    }

    /// Applies a JSON patch (RFC 6902), wholly or not at all.
    ///
    /// # Errors
    /// See [`ApiError`]; `Stale` if a test in the patch fails.
    ///
    /// # Cancellation
    /// The server may have applied it all the same.
    pub async fn patch(&self, path: &str, change: &Value) -> Result<Value, ApiError> {
        self.ask(Method::PATCH, path, Some(change)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        change: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let token = self.token.clone();
        let authorization = blocking(move || authorization(&token)).await?;
        let (asked, target) = (method.clone(), path.to_owned());
        let failed = move |error| ApiError::Unreachable { method: asked, path: target, error };
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, authorization)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json-patch+json")
            .body(change.map(Value::to_string).unwrap_or_default());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Err(failed(error.into())),
        };
        let answered = timeout(PATIENCE, async {
            let (head, body) = self.client.request(request).await?.into_parts();
            let body = Limited::new(body, LARGEST).collect().await?.to_bytes();
            Ok((head.status, serde_json::from_slice::<Value>(&body)?))
        });
        let (status, answer) = match answered.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(failed(error)),
            Err(late) => return Err(failed(late.into())),
        };
        if status.is_success() {
            return Ok(answer);
        }
        // What the server sends with a refusal is a Status, whose message is for people.
        let message = answer["message"].as_str().unwrap_or("it does not say why").to_owned();
        Err(ApiError::Refused { method, path: path.to_owned(), status, message })
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let read = std::fs::read(path).map(Zeroizing::new);
    read.map_err(|error| ApiError::Read { path: path.to_owned(), error })
}

/// The header that says who asks.
fn authorization(token: &Path) -> Result<HeaderValue, ApiError> {
    let content = read(token)?;
    let bearer = Zeroizing::new([b"Bearer ", content.trim_ascii()].concat());
    let mut value = HeaderValue::from_bytes(&bearer).map_err(|_| ApiError::Unusable {
        path: token.to_owned(),
        rule: "must be a token of a service account".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
