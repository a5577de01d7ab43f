//! Clients: one pool of connections per endpoint, one SDK client per endpoint and principal.
//!
//! A client lives as long as somebody holds a source that was opened with it, so credentials that
//! nobody uses any more are dropped from memory. Connections belong to the endpoint and survive;
//! those for a CA bundle or client certificate of a Secret belong to the client, and go with it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Weak},
};

use aws_credential_types::Credentials;
use aws_sdk_s3::{config::IdentityCache, types::RequestPayer};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use url::Url;

use super::{
    S3Source,
    chain::Chain,
    endpoint::{Endpoint, Route, Trust, read_bundle},
    guard::names_forbidden_address,
    sts::{Exchange, Sts, expired},
    temporary::{Fetched, Origin, Temporary},
};
use crate::{
    certificate::{CaBundle, ClientCertificate},
    config::{Config, EndpointConfig, Policy, Timeouts, UrlPattern, is_aws, sts_of_aws},
    failure::FailureKind,
    object::EndpointId,
    problems::Problems,
    source::{
        Principal, SourceError,
        bound::{Bound, Part},
    },
    telemetry::metrics::Metrics,
    volume::{AccessKeys, EndpointChoice, Role, ServiceToken, SseCustomerKey},
};

/// What a volume says about how to reach S3.
#[derive(Debug)]
pub struct S3Access<'a> {
    /// Which endpoint.
    pub endpoint: &'a EndpointChoice,
    /// The region, where the volume overrides the endpoint's.
    pub region: Option<&'a str>,
    /// Who asks.
    pub identity: Identity<'a>,
    /// The certificates that vouch for the endpoint instead of its own.
    pub ca_bundle: Option<&'a CaBundle>,
    /// What the endpoint is shown, if it speaks TLS.
    pub client_certificate: Option<&'a ClientCertificate>,
    /// The key that the customer's objects are encrypted with.
    pub sse_customer_key: Option<&'a SseCustomerKey>,
    /// `namespace/name` of the pod, for the User-Agent.
    pub pod: Option<String>,
    /// The account that must own the buckets.
    pub bucket_owner: Option<&'a str>,
    /// Whether the requester pays.
    pub request_payer: bool,
}

/// Whose credentials requests are signed with.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// The holder of these keys.
    Keys(&'a AccessKeys),
    /// The subject of a token, in the role that it is exchanged for.
    Token(&'a ServiceToken, &'a Role),
    /// The driver itself; somebody has checked that the policy grants it.
    Driver,
    /// Nobody: requests are not signed.
    Anonymous,
}

/// Opens sources.
pub struct S3Clients {
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    default_endpoint: Option<String>,
    /// The hosts that the policy names without a wildcard.
    spelled_out: Mutex<Vec<UrlPattern>>,
    requests: Bound,
    /// In units of [`UNIT`].
    bytes: Bound,
    /// The units of the largest request.
    part: usize,
    metrics: Arc<Metrics>,
    clients: Mutex<HashMap<ClientKey, Weak<Client>>>,
    /// By principal, whatever region and endpoint name the clients have.
    exchanges: Mutex<HashMap<Principal, Weak<Temporary>>>,
    driver: Arc<Temporary>,
}

impl fmt::Debug for S3Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Clients").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// An SDK client with what it was made for.
pub(super) struct Client {
    sdk: aws_sdk_s3::Client,
    principal: Principal,
    endpoint: Arc<Endpoint>,
    /// What must be ready before a request is sent.
    temporary: Option<Arc<Temporary>>,
    requests: Part,
    bytes: Part,
}

/// The unit in which bytes in flight are counted, so that a semaphore's `u32` reaches terabytes.
const UNIT: u64 = 1024;

/// Bytes in units of [`UNIT`], rounded up.
pub(super) fn byte_units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// What requests are signed with.
enum Signer {
    Keys(Credentials),
    Temporary(Arc<Temporary>),
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    principal: Principal,
    /// One URL may be configured under several names, with different settings.
    endpoint: String,
    region: String,
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

    /// How many requests may be under way for it.
    pub(super) fn requests(&self) -> &Part {
        &self.requests
    }

    /// How many bytes may be on their way for it.
    pub(super) fn bytes(&self) -> &Part {
        &self.bytes
    }

    /// Waits until requests can be signed.
    pub(super) async fn ready(&self) -> Result<(), SourceError> {
        match &self.temporary {
            Some(temporary) => temporary.ready().await,
            None => Ok(()),
        }
    }

    /// What an error means for whoever's credentials these are.
    pub(super) fn judge(&self, error: SourceError) -> SourceError {
        match &self.temporary {
            Some(temporary) => temporary.judge(error),
            None => error,
        }
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
            match read_bundle(endpoint) {
                Ok(ca_bundle) => {
                    let trust = Trust { ca_bundle, client_certificate: None };
                    let endpoint = Endpoint::new(name, endpoint.clone(), trust, Route::Configured);
                    endpoints.insert(name.clone(), Arc::new(endpoint));
                }
                Err(text) => problems.add(format!("endpoints.{name}.caBundle"), text),
            }
        }
        let default_endpoint = config.default_endpoint_name().map(str::to_owned);
        let default = default_endpoint.as_ref().and_then(|name| config.endpoints.get(name));
        let region = default.map_or("us-east-1", |endpoint| &endpoint.region);
        let driver = Arc::new(Temporary::new(Origin::Chain(Chain::new(region))));
        problems.into_result(Self {
            endpoints,
            default_endpoint,
            spelled_out: Mutex::new(spelled_out(&config.policy)),
            requests: Bound::new(config.fetch.requests),
            bytes: Bound::new(byte_units(config.fetch.bytes_in_flight.bytes()) as usize),
            part: byte_units(config.fetch.part_size.bytes()) as usize,
            metrics,
            clients: Mutex::default(),
            exchanges: Mutex::default(),
            driver,
        })
    }

    /// Lets another policy decide how URLs are reached from now on. Sources that are open keep their
    /// way; clients are made anew, since one may have been made for a URL that was spelled out.
    pub fn set_policy(&self, policy: &Policy) {
        *self.spelled_out.lock() = spelled_out(policy);
        self.clients.lock().clear();
        self.exchanges.lock().clear();
    }

    /// Opens a source for one volume.
    ///
    /// # Errors
    /// `Invalid` if the endpoint is not configured, or AWS is to be asked without a role;
    /// `Unauthenticated` for a token that has expired; `Denied` for a URL that leads to the node
    /// itself.
    pub fn open(&self, access: &S3Access<'_>) -> Result<S3Source, SourceError> {
        let endpoint = self.endpoint(access)?;
        let client = self.client(endpoint, access)?;
        let version = env!("CARGO_PKG_VERSION");
        let agent = match &access.pod {
            Some(pod) => format!("s3view/{version} (pod {pod})"),
            None => format!("s3view/{version}"),
        };
        Ok(S3Source {
            client,
            metrics: Arc::clone(&self.metrics),
            agent: agent.into(),
            sse_key: access.sse_customer_key.cloned().map(Arc::new),
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
        let trust = Trust {
            ca_bundle: access.ca_bundle.cloned(),
            client_certificate: access.client_certificate.cloned(),
        };
        let endpoint = match configured {
            Some(endpoint) if trust.is_nothing() => return Ok(Arc::clone(endpoint)),
            Some(endpoint) => endpoint.with(trust),
            None => {
                let route = match access.endpoint {
                    EndpointChoice::Url(url) => self.route("endpoint", url)?,
                    EndpointChoice::Default | EndpointChoice::Named(_) => Route::Configured,
                };
                Endpoint::new("", unconfigured(access), trust, route)
            }
        };
        Ok(Arc::new(endpoint))
    }

    /// How to reach a URL from the attributes; the policy has allowed its host already.
    fn route(&self, attribute: &str, url: &Url) -> Result<Route, SourceError> {
        if self.spelled_out.lock().iter().any(|pattern| pattern.matches(url)) {
            return Ok(Route::Direct);
        }
        if names_forbidden_address(url) {
            let text = format!(
                "{attribute}: {url} is an address of the node or of its network; only a pattern \
                 without '*' in policy.endpointUrls can allow it"
            );
            return Err(SourceError::new(FailureKind::Denied, text));
        }
        Ok(Route::Guarded)
    }

    fn client(
        &self,
        endpoint: Arc<Endpoint>,
        access: &S3Access<'_>,
    ) -> Result<Arc<Client>, SourceError> {
        let region = access.region.unwrap_or(&endpoint.config.region).to_owned();
        let (principal, signer) = self.signer(&endpoint, &region, access.identity)?;
        let name = endpoint.name.clone();
        let key = ClientKey { principal, endpoint: name, region: region.clone() };
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let config = endpoint.sdk_config(region);
        let (config, temporary) = match signer {
            Signer::Keys(credentials) => (config.credentials_provider(credentials), None),
            Signer::Temporary(temporary) => {
                let fetched = Fetched(Arc::clone(&temporary));
                // They are cached here; a second cache would hold on to what is replaced.
                let config = config.identity_cache(IdentityCache::no_cache());
                (config.credentials_provider(fetched), Some(temporary))
            }
            Signer::Nobody => (config.allow_no_auth(), None),
        };
        let sdk = aws_sdk_s3::Client::from_conf(config.build());
        let (requests, bytes) = (self.requests.part(1), self.bytes.part(self.part));
        let client = Arc::new(Client { sdk, principal, endpoint, temporary, requests, bytes });
        clients.insert(key, Arc::downgrade(&client));
        Ok(client)
    }

    /// Who asks, and what that one signs with.
    fn signer(
        &self,
        endpoint: &Endpoint,
        region: &str,
        identity: Identity<'_>,
    ) -> Result<(Principal, Signer), SourceError> {
        Ok(match identity {
            Identity::Keys(keys) => {
                let token = keys.session_token.as_ref().map(ExposeSecret::expose_secret);
                let secret = keys.secret_access_key.expose_secret();
                let id = &keys.access_key_id;
                let principal = Principal::credential(&endpoint.id, id, secret, token);
                let principal = endpoint.seen_as(principal);
                let token = token.map(str::to_owned);
                let credentials = Credentials::new(id, secret, token, None, "volume secret");
                (principal, Signer::Keys(credentials))
            }
            Identity::Token(token, role) => {
                let (principal, temporary) = self.exchange(endpoint, region, token, role)?;
                (principal, Signer::Temporary(temporary))
            }
            Identity::Driver => {
                let principal = endpoint.seen_as(Principal::driver(&endpoint.id));
                (principal, Signer::Temporary(Arc::clone(&self.driver)))
            }
            Identity::Anonymous => {
                (endpoint.seen_as(Principal::anonymous(&endpoint.id)), Signer::Nobody)
            }
        })
    }

    /// The exchange of a token's principal, which knows the token from now on.
    fn exchange(
        &self,
        endpoint: &Endpoint,
        region: &str,
        token: &ServiceToken,
        role: &Role,
    ) -> Result<(Principal, Arc<Temporary>), SourceError> {
        if token.is_expired() {
            return Err(expired(token));
        }
        let (sts, route) = self.sts(endpoint, region, role)?;
        let principal = Principal::web_identity(&endpoint.id, &sts.identity(token));
        let principal = endpoint.seen_as(principal);
        let known = |exchanges: &HashMap<Principal, Weak<Temporary>>| {
            let known = exchanges.get(&principal).and_then(Weak::upgrade)?;
            known.exchange().into_iter().for_each(|exchange| exchange.offer(token));
            Some(known)
        };
        if let Some(known) = known(&self.exchanges.lock()) {
            return Ok((principal, known));
        }
        let http = endpoint.http_to(&sts.url, route);
        let metrics = Arc::clone(&self.metrics);
        let exchange = Exchange::new(&sts, http, &endpoint.config.timeouts, token, metrics);
        let new = Arc::new(Temporary::new(Origin::Exchange(exchange)));
        let mut exchanges = self.exchanges.lock();
        // Somebody may have been faster.
        if let Some(known) = known(&exchanges) {
            return Ok((principal, known));
        }
        exchanges.retain(|_, exchange| exchange.strong_count() > 0);
        exchanges.insert(principal, Arc::downgrade(&new));
        Ok((principal, new))
    }

    /// The token service of a volume: its own, or the endpoint's, or AWS's, or, elsewhere, the
    /// endpoint itself.
    fn sts(
        &self,
        endpoint: &Endpoint,
        region: &str,
        role: &Role,
    ) -> Result<(Sts, Route), SourceError> {
        let configured = endpoint.config.sts.as_ref();
        let (url, route) = match (&role.sts_endpoint, configured.and_then(|sts| sts.url.as_ref())) {
            (Some(url), _) => (url.clone(), self.route("stsEndpoint", url)?),
            (None, Some(url)) => (url.clone(), Route::Configured),
            (None, None) if is_aws(&endpoint.config.url) => (sts_of_aws(region), Route::Configured),
            (None, None) => (endpoint.config.url.clone(), endpoint.route),
        };
        let of_endpoint = || configured.and_then(|sts| sts.role_arn.clone());
        let role_arn = role.role_arn.clone().or_else(of_endpoint);
        if role_arn.is_none() && is_aws(&url) {
            let text = "roleArn: is required for AWS, here or as sts.roleArn of the endpoint in the \
                        driver's configuration";
            return Err(SourceError::new(FailureKind::Invalid, text));
        }
        Ok((Sts { url, region: region.to_owned(), role_arn }, route))
    }
}

/// The patterns that name one host: whoever wrote them meant it, wherever it is.
fn spelled_out(policy: &Policy) -> Vec<UrlPattern> {
    policy.endpoint_urls.iter().filter(|pattern| pattern.is_exact()).cloned().collect()
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
