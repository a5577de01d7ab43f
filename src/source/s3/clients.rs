//! Clients: one pool of connections per endpoint, one SDK client per endpoint and principal.
//!
//! A client lives as long as somebody holds a source that was opened with it, so credentials that
//! nobody uses any more are dropped from memory. Connections belong to the endpoint and survive.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Weak},
};

use aws_sdk_s3::{
    config::{
        BehaviorVersion, Credentials, Region, ResponseChecksumValidation, SharedHttpClient,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
    types::RequestPayer,
};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use tokio::sync::Semaphore;
use url::Url;

use super::{
    S3Source,
    agent::UserAgent,
    guard::{Guarded, names_forbidden_address},
    page::Whole,
};
use crate::{
    config::{Config, EndpointConfig, Timeouts, UrlPattern},
    failure::FailureKind,
    object::EndpointId,
    problems::Problems,
    source::{Principal, SourceError},
    telemetry::metrics::Metrics,
    volume::{AccessKeys, EndpointChoice, VolumeSecrets},
};

/// What a volume says about how to reach S3.
#[derive(Debug)]
pub struct S3Access<'a> {
    /// Which endpoint.
    pub endpoint: &'a EndpointChoice,
    /// The region, where the volume overrides the endpoint's.
    pub region: Option<&'a str>,
    /// The keys, the CA bundle and the SSE-C key.
    pub secrets: &'a VolumeSecrets,
    /// `namespace/name` of the pod, for the User-Agent.
    pub pod: Option<String>,
    /// The account that must own the buckets.
    pub bucket_owner: Option<&'a str>,
    /// Whether the requester pays.
    pub request_payer: bool,
}

/// Opens sources.
pub struct S3Clients {
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    default_endpoint: Option<String>,
    /// The hosts that the policy names without a wildcard.
    spelled_out: Vec<UrlPattern>,
    permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    clients: Mutex<HashMap<ClientKey, Weak<Client>>>,
}

impl fmt::Debug for S3Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Clients").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// How connections to an endpoint are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Named in the configuration: through the environment's proxy, if there is one.
    Configured,
    /// A URL that the policy spells out: no proxy.
    Direct,
    /// A URL that a wildcard allows: no proxy, and only to addresses that a pod may name.
    Guarded,
}

/// An SDK client with what it was made for.
pub(super) struct Client {
    sdk: aws_sdk_s3::Client,
    principal: Principal,
    endpoint: Arc<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    principal: Principal,
    /// One URL may be configured under several names, with different settings.
    endpoint: String,
    region: String,
}

/// An endpoint, ready to be called.
#[derive(Debug)]
struct Endpoint {
    /// Its name in the configuration; empty for a URL or AWS itself.
    name: String,
    id: EndpointId,
    config: EndpointConfig,
    http: SharedHttpClient,
}

impl Client {
    pub(super) fn sdk(&self) -> &aws_sdk_s3::Client {
        &self.sdk
    }

    pub(super) fn endpoint(&self) -> &EndpointId {
        &self.endpoint.id
    }

    pub(super) fn principal(&self) -> Principal {
        self.principal
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.endpoint.config.timeouts
    }

    pub(super) fn retries(&self) -> usize {
        self.endpoint.config.retries as usize
    }
}

impl S3Clients {
    /// Reads the CA bundles of all configured endpoints and prepares their connection pools.
    ///
    /// # Errors
    /// Every endpoint whose CA bundle cannot be read or holds no certificate.
    ///
    /// # Blocking
    /// Reads files.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut endpoints = BTreeMap::new();
        for (name, endpoint) in &config.endpoints {
            match read_bundle(endpoint)
                .and_then(|pem| Endpoint::new(name, endpoint.clone(), pem, Route::Configured))
            {
                Ok(endpoint) => drop(endpoints.insert(name.clone(), Arc::new(endpoint))),
                Err(text) => problems.add(format!("endpoints.{name}.caBundle"), text),
            }
        }
        let policy = &config.policy.endpoint_urls;
        let default_endpoint = config.default_endpoint_name().map(str::to_owned);
        problems.into_result(Self {
            endpoints,
            default_endpoint,
            spelled_out: policy.iter().filter(|pattern| pattern.is_exact()).cloned().collect(),
            permits: Arc::new(Semaphore::new(config.fetch.requests)),
            metrics,
            clients: Mutex::new(HashMap::new()),
        })
    }

    /// Opens a source for one volume.
    ///
    /// # Errors
    /// `Unauthenticated` without keys; `Invalid` if the endpoint is not configured or the Secret's
    /// CA bundle is none.
    pub fn open(&self, access: &S3Access<'_>) -> Result<S3Source, SourceError> {
        let keys = access.secrets.keys.as_ref().ok_or_else(|| {
            let text = "the volume has no access key; name a Secret with accesskey and secretkey \
                        in nodePublishSecretRef";
            SourceError::new(FailureKind::Unauthenticated, text)
        })?;
        let endpoint = self.endpoint(access)?;
        let client = self.client(endpoint, access.region, keys);
        let version = env!("CARGO_PKG_VERSION");
        let agent = match &access.pod {
            Some(pod) => format!("s3view/{version} (pod {pod})"),
            None => format!("s3view/{version}"),
        };
        Ok(S3Source {
            client,
            permits: Arc::clone(&self.permits),
            metrics: Arc::clone(&self.metrics),
            agent: agent.into(),
            sse_key: access.secrets.sse_customer_key.clone().map(Arc::new),
            bucket_owner: access.bucket_owner.map(str::to_owned),
            payer: access.request_payer.then_some(RequestPayer::Requester),
        })
    }

    fn endpoint(&self, access: &S3Access<'_>) -> Result<Arc<Endpoint>, SourceError> {
        let configured = match (access.endpoint, &self.default_endpoint) {
            (EndpointChoice::Named(name), _) | (EndpointChoice::Default, Some(name)) => {
                Some(self.endpoints.get(name).ok_or_else(|| unknown_endpoint(name))?)
            }
            (EndpointChoice::Default, None) | (EndpointChoice::Url(_), _) => None,
        };
        let bundle = access.secrets.ca_bundle.as_ref().map(|pem| pem.as_bytes().to_vec());
        let endpoint = match (configured, bundle) {
            (Some(endpoint), None) => return Ok(Arc::clone(endpoint)),
            (Some(endpoint), bundle) => {
                Endpoint::new(&endpoint.name, endpoint.config.clone(), bundle, Route::Configured)
            }
            (None, bundle) => Endpoint::new("", unconfigured(access), bundle, self.route(access)?),
        };
        let invalid = |text| SourceError::new(FailureKind::Invalid, format!("ca.crt: {text}"));
        endpoint.map(Arc::new).map_err(invalid)
    }

    /// How to reach a URL from the attributes; the policy has allowed its host already.
    fn route(&self, access: &S3Access<'_>) -> Result<Route, SourceError> {
        let EndpointChoice::Url(url) = access.endpoint else { return Ok(Route::Configured) };
        if self.spelled_out.iter().any(|pattern| pattern.matches(url)) {
            return Ok(Route::Direct);
        }
        if names_forbidden_address(url) {
            let text = format!(
                "endpoint: {url} is an address of the node or of its network; only a pattern \
                 without '*' in policy.endpointUrls can allow it"
            );
            return Err(SourceError::new(FailureKind::Denied, text));
        }
        Ok(Route::Guarded)
    }

    fn client(
        &self,
        endpoint: Arc<Endpoint>,
        region: Option<&str>,
        keys: &AccessKeys,
    ) -> Arc<Client> {
        let token = keys.session_token.as_ref().map(ExposeSecret::expose_secret);
        let secret = keys.secret_access_key.expose_secret();
        let principal = Principal::credential(&endpoint.id, &keys.access_key_id, secret, token);
        let region = region.unwrap_or(&endpoint.config.region).to_owned();
        let name = endpoint.name.clone();
        let key = ClientKey { principal, endpoint: name, region: region.clone() };
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return client;
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let id = &keys.access_key_id;
        let credentials =
            Credentials::new(id, secret, token.map(str::to_owned), None, "volume secret");
        let sdk = aws_sdk_s3::Client::from_conf(endpoint.sdk_config(region, credentials));
        let client = Arc::new(Client { sdk, principal, endpoint });
        clients.insert(key, Arc::downgrade(&client));
        client
    }
}

impl Endpoint {
    fn new(
        name: &str,
        config: EndpointConfig,
        ca_bundle: Option<Vec<u8>>,
        route: Route,
    ) -> Result<Self, String> {
        let id = EndpointId::new(config.url.as_str(), ca_bundle.as_deref());
        let http = http_client(&config.url, ca_bundle, route)?;
        Ok(Self { name: name.to_owned(), id, config, http })
    }

    fn sdk_config(&self, region: String, credentials: Credentials) -> aws_sdk_s3::Config {
        let timeouts = &self.config.timeouts;
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .endpoint_url(self.config.url.as_str())
            .force_path_style(self.config.path_style)
            .credentials_provider(credentials)
            .http_client(self.http.clone())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(UserAgent)
            .interceptor(Whole)
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(timeouts.connect)
                    .operation_attempt_timeout(timeouts.connect + timeouts.stall)
                    .build(),
            )
            .build()
    }
}

fn unknown_endpoint(name: &str) -> SourceError {
    SourceError::new(FailureKind::Invalid, format!("endpoint: {name:?} is not configured"))
}

/// AWS itself, or a URL from the attributes, with the defaults of a configured endpoint.
fn unconfigured(access: &S3Access<'_>) -> EndpointConfig {
    let region = access.region.unwrap_or("us-east-1");
    match access.endpoint {
        EndpointChoice::Url(url) => EndpointConfig::for_url(url.clone(), region),
        EndpointChoice::Default | EndpointChoice::Named(_) => EndpointConfig::aws(region),
    }
}

fn read_bundle(endpoint: &EndpointConfig) -> Result<Option<Vec<u8>>, String> {
    let Some(path) = &endpoint.ca_bundle else { return Ok(None) };
    let shown = path.display();
    std::fs::read(path).map(Some).map_err(|error| format!("cannot read {shown}: {error}"))
}

/// A pool of connections. A plain `http://` endpoint costs no TLS state; a CA bundle replaces the
/// system's roots, so that a private endpoint is vouched for by its own CA and nobody else.
fn http_client(
    url: &Url,
    ca_bundle: Option<Vec<u8>>,
    route: Route,
) -> Result<SharedHttpClient, String> {
    let tls = match (url.scheme(), ca_bundle) {
        // Only the connector for TLS takes a resolver; it speaks plain HTTP as well.
        ("http", _) if route != Route::Guarded => None,
        (_, None) => Some(TlsContext::default()),
        (_, Some(pem)) => {
            let store = TrustStore::empty().with_pem_certificate(pem);
            let context = TlsContext::builder().with_trust_store(store).build();
            Some(context.map_err(|error| format!("must hold PEM certificates: {error}"))?)
        }
    };
    Ok(Builder::new().build_with_connector_fn(move |settings, _| {
        let proxy = match route {
            Route::Configured => ProxyConfig::from_env(),
            Route::Direct | Route::Guarded => ProxyConfig::disabled(),
        };
        let mut connector = Connector::builder().proxy_config(proxy);
        connector.set_connector_settings(settings.cloned());
        let Some(context) = &tls else { return connector.build_http() };
        let connector =
            connector.tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context.clone());
        match route {
            Route::Guarded => connector.build_with_resolver(Guarded),
            Route::Configured | Route::Direct => connector.build(),
        }
    }))
}
