//! The Kubernetes API, as far as plugins ask it: an object is read, and a part of it changed.
//!
//! A client for that is a GET and a PATCH, made of the parts that reach S3 (hyper, rustls); see
//! docs/adr/0009-few-requests-are-no-reason-for-a-kubernetes-client.md. Credentials are those of the pod's
//! service account, read anew for each attempt, because the kubelet replaces them.

mod taint;
mod volume;

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use rustls::{ClientConfig, crypto::ring};
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;
use zeroize::Zeroizing;

pub use self::{
    taint::{StartupTaint, Taint},
    volume::PersistentVolume,
};
use crate::{certificate::CaBundle, failure::FailureKind, source::Transient, task::blocking};

/// What stands as it is in a part of a path.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes. A `Node` that lists many images has some hundred
/// thousand.
const LARGEST: usize = 4 << 20;

/// How a pod reaches the API server.
#[derive(Debug, Clone)]
pub struct ApiAccess {
    host: String,
    port: String,
    account: PathBuf,
}

/// The API server, with the credentials of the moment.
struct ApiServer {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: String,
    authorization: HeaderValue,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why the API server was not asked, or said no.
#[derive(Debug, Error)]
pub enum ApiError {
    /// This process is in no pod.
    #[error("{0} is not set: this process is in no pod of a cluster")]
    NoCluster(&'static str),
    /// The service account cannot be used.
    #[error("failed to read the service account's {}", path.display())]
    Account {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: io::Error,
    },
    /// The server did not answer, or its answer broke off.
    #[error("{what}: the API server cannot be reached")]
    Unreachable {
        /// What was asked.
        what: String,
        /// What went wrong.
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server said no.
    #[error("{what}: the API server answered {status}: {message}")]
    Refused {
        /// What was asked.
        what: String,
        /// The status.
        status: StatusCode,
        /// Its reason.
        message: String,
    },
}

impl ApiError {
    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoCluster(_) | Self::Account { .. } => FailureKind::Precondition,
            Self::Unreachable { .. } => FailureKind::Unavailable,
            Self::Refused { status, .. } => match status.as_u16() {
                401 => FailureKind::Unauthenticated,
                403 => FailureKind::Denied,
                404 => FailureKind::NotFound,
                // A patch whose test failed is 422: the object has changed.
                409 | 422 => FailureKind::Stale,
                429 | 500..=599 => FailureKind::Unavailable,
                _ => FailureKind::Internal,
            },
        }
    }
}

impl Transient for ApiError {
    /// A right may be given, a token replaced and a node registered a moment later.
    fn is_transient(&self) -> bool {
        !matches!(self.kind(), FailureKind::Internal | FailureKind::Precondition)
    }
}

impl ApiAccess {
    /// Of the cluster that this pod is in, as the service account whose token and CA are in the
    /// directory `account`.
    ///
    /// Source: Kubernetes, "Accessing the Kubernetes API from a Pod".
    ///
    /// # Errors
    /// [`ApiError::NoCluster`].
    pub fn of_pod(account: PathBuf) -> Result<Self, ApiError> {
        let variable = |name| env::var(name).map_err(|_| ApiError::NoCluster(name));
        let (host, port) =
            (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        Ok(Self { host, port, account })
    }

    /// Likewise, if this is a pod that was given a service account.
    ///
    /// # Blocking
    /// Looks for a file.
    pub fn of_pod_with_account(account: PathBuf) -> Option<Self> {
        Self::of_pod(account).ok().filter(|access| access.account.join("token").exists())
    }
}

impl ApiServer {
    /// Reads the credentials and prepares connections.
    async fn open(access: &ApiAccess) -> Result<Self, ApiError> {
        let ApiAccess { host, port, account } = access.clone();
        // An IPv6 address stands in brackets in a URL.
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let (token, bundle) = blocking(move || credentials(&account)).await?;
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(Arc::clone(bundle.roots()))
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let http = Client::builder(TokioExecutor::new()).build(HttpsConnector::from((tcp, tls)));
        Ok(Self { http, url: format!("https://{host}:{port}"), authorization: token })
    }

    /// Reads an object.
    async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.ask(Method::GET, path, None).await
    }

    /// Changes an object by a JSON patch (RFC 6902): all of it or, if one of its tests fails, nothing.
    async fn patch(&self, path: &str, changes: &Value) -> Result<Value, ApiError> {
        self.ask(Method::PATCH, path, Some(changes)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        changes: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let what = format!("{method} {path}");
        let unreachable = |error: Box<dyn std::error::Error + Send + Sync>| {
            let what = what.clone();
            ApiError::Unreachable { what, error }
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(AUTHORIZATION, self.authorization.clone())
            .header(ACCEPT, "application/json");
        if changes.is_some() {
            request = request.header(CONTENT_TYPE, "application/json-patch+json");
        }
        let body = changes.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::from(body)).map_err(|error| unreachable(error.into()))?;
        let answer = timeout(LIMIT, async {
            let answer = self.http.request(request).await?;
            let (status, body) = (answer.status(), answer.into_body());
            let body = Limited::new(body, LARGEST).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
        });
        let (status, body) =
            answer.await.map_err(|error| unreachable(error.into()))?.map_err(unreachable)?;
        let value = serde_json::from_slice(&body);
        if status.is_success() {
            return value.map_err(|error| unreachable(error.into()));
        }
        let message = value.ok().and_then(|it: Value| Some(it["message"].as_str()?.to_owned()));
        let message = message.unwrap_or_else(|| "it gave no reason".to_owned());
        Err(ApiError::Refused { what, status, message })
    }
}

/// A name as one part of a path.
fn segment(name: &str) -> PercentEncode<'_> {
    utf8_percent_encode(name, NAME)
}

/// Token and CA of a service account. Blocks.
fn credentials(account: &Path) -> Result<(HeaderValue, CaBundle), ApiError> {
    let read = |name: &str| {
        let path = account.join(name);
        std::fs::read(&path).map_err(|error| ApiError::Account { path, error })
    };
    let wrong = |name: &str, text: String| {
        let error = io::Error::new(io::ErrorKind::InvalidData, text);
        ApiError::Account { path: account.join(name), error }
    };
    let token = Zeroizing::new(read("token")?);
    let bearer = Zeroizing::new([b"Bearer ", token.trim_ascii()].concat());
    let mut token = HeaderValue::from_bytes(&bearer)
        .map_err(|_| wrong("token", "it is no text of one line".to_owned()))?;
    token.set_sensitive(true);
    let bundle = CaBundle::parse(&read("ca.crt")?).map_err(|text| wrong("ca.crt", text))?;
    Ok((token, bundle))
}
