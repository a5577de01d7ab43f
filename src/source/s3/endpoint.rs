//! Endpoints: what a name or URL leads to, by which way, whose certificates vouch for it, and which
//! one is shown to it.

use aws_sdk_s3::config::{
    BehaviorVersion, Region, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use url::Url;

use super::{agent::UserAgent, guard::Guarded, mutual, page::Whole};
use crate::{
    certificate::{CaBundle, ClientCertificate},
    config::{EndpointConfig, Timeouts},
    object::EndpointId,
    source::Principal,
};

/// How connections to an endpoint are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Named in the configuration: through the environment's proxy, if there is one.
    Configured,
    /// A URL that the policy spells out: no proxy.
    Direct,
    /// A URL that a wildcard allows: no proxy, and only to addresses that a pod may name.
    Guarded,
}

/// Who is who on the connections to an endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    /// The certificates that vouch for the endpoint instead of the system's roots.
    pub(super) ca_bundle: Option<CaBundle>,
    /// What the endpoint is shown.
    pub(super) client_certificate: Option<ClientCertificate>,
}

impl Trust {
    /// Whether nothing is said.
    pub(super) fn is_nothing(&self) -> bool {
        self.ca_bundle.is_none() && self.client_certificate.is_none()
    }
}

/// An endpoint, ready to be called.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its name in the configuration; empty for a URL or AWS itself.
    pub(super) name: String,
    pub(super) id: EndpointId,
    pub(super) config: EndpointConfig,
    pub(super) route: Route,
    http: SharedHttpClient,
    trust: Trust,
}

impl Endpoint {
    /// Prepares the connections. Without TLS nothing is shown to the endpoint.
    pub(super) fn new(name: &str, config: EndpointConfig, mut trust: Trust, route: Route) -> Self {
        if config.url.scheme() != "https" {
            trust.client_certificate = None;
        }
        let Trust { ca_bundle, client_certificate } = &trust;
        let id = EndpointId::new(config.url.as_str(), ca_bundle.as_ref().map(CaBundle::pem));
        let http = match client_certificate {
            Some(shown) => mutual::pool(shown, ca_bundle.as_ref(), route, config.timeouts.connect),
            None => http_client(&config.url, ca_bundle.as_ref(), route),
        };
        Self { name: name.to_owned(), id, config, route, http, trust }
    }

    /// The same endpoint on connections of its own, where the Secret of a volume says more about
    /// who is who.
    pub(super) fn with(&self, trust: Trust) -> Self {
        let trust = Trust {
            ca_bundle: trust.ca_bundle.or_else(|| self.trust.ca_bundle.clone()),
            client_certificate: trust.client_certificate,
        };
        Self::new(&self.name, self.config.clone(), trust, self.route)
    }

    /// Who somebody is here: with what is shown besides.
    pub(super) fn seen_as(&self, principal: Principal) -> Principal {
        match &self.trust.client_certificate {
            Some(shown) => principal.showing(shown.digest()),
            None => principal,
        }
    }

    /// The settings of an SDK client without credentials.
    pub(super) fn sdk_config(&self, region: String) -> aws_sdk_s3::config::Builder {
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .endpoint_url(self.config.url.as_str())
            .force_path_style(self.config.path_style)
            .http_client(self.http.clone())
            // A session for a bucket would be one more request, whose refusal looks like an outage.
            .disable_s3_express_session_auth(true)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(UserAgent)
            .interceptor(Whole)
            .timeout_config(timeouts(&self.config.timeouts))
    }

    /// Connections to another service that belongs to this endpoint. The client certificate is for
    /// the endpoint alone: it is shown only if the service is the endpoint itself.
    pub(super) fn http_to(&self, url: &Url, route: Route) -> SharedHttpClient {
        if self.config.url.origin() == url.origin() {
            return self.http.clone();
        }
        http_client(url, self.ca_bundle_for(url), route)
    }

    /// The CA bundle, if it vouches for another service too: only on the same host. It replaces the
    /// system's roots, and a service elsewhere is likely to have a certificate of theirs.
    fn ca_bundle_for(&self, url: &Url) -> Option<&CaBundle> {
        self.trust.ca_bundle.as_ref().filter(|_| self.config.url.host() == url.host())
    }
}

/// The time limits of one attempt.
pub(super) fn timeouts(timeouts: &Timeouts) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(timeouts.connect)
        .operation_attempt_timeout(timeouts.connect + timeouts.stall)
        .build()
}

/// The certificates that an endpoint is configured with. Reads a file.
pub(super) fn read_bundle(endpoint: &EndpointConfig) -> Result<Option<CaBundle>, String> {
    let Some(path) = &endpoint.ca_bundle else { return Ok(None) };
    let shown = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    CaBundle::parse(&pem).map(Some).map_err(|text| format!("{shown} {text}"))
}

/// A pool of connections. A plain `http://` endpoint costs no TLS state; a CA bundle replaces the
/// system's roots, so that a private endpoint is vouched for by its own CA and nobody else.
fn http_client(url: &Url, ca_bundle: Option<&CaBundle>, route: Route) -> SharedHttpClient {
    let tls = match (url.scheme(), ca_bundle) {
        // Only the connector for TLS takes a resolver; it speaks plain HTTP as well.
        ("http", _) if route != Route::Guarded => None,
        (_, None) => Some(TlsContext::default()),
        (_, Some(bundle)) => {
            let store = TrustStore::empty().with_pem_certificate(bundle.pem());
            let context = TlsContext::builder().with_trust_store(store).build();
            Some(context.expect("a bundle has been read already"))
        }
    };
    pool(tls, route)
}

/// Connections to whatever the environment says that the driver's credentials come from.
pub(super) fn http_to_anywhere() -> SharedHttpClient {
    pool(Some(TlsContext::default()), Route::Configured)
}

fn pool(tls: Option<TlsContext>, route: Route) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, _| {
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
    })
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::certificate::{CertificateChain, PrivateKey, samples::Pair};

    fn endpoint(url: &str) -> Endpoint {
        let pair = Pair::ecdsa();
        let chain = CertificateChain::parse(&pair.certificate).unwrap();
        let key = PrivateKey::parse(&pair.key).unwrap();
        let trust = Trust {
            ca_bundle: Some(CaBundle::parse(pair.certificate.as_bytes()).unwrap()),
            client_certificate: Some(ClientCertificate::new(chain, &key).unwrap()),
        };
        let config = EndpointConfig::for_url(Url::parse(url).unwrap(), "us-east-1");
        Endpoint::new("minio", config, trust, Route::Configured)
    }

    #[test_case("https://minio.spark:9000", true; "the endpoint itself")]
    #[test_case("https://minio.spark:9443", true; "another port")]
    #[test_case("https://sts.spark:9000", false; "another host")]
    #[test_case("https://sts.eu-west-1.amazonaws.com", false; "a public service")]
    fn a_bundle_vouches_for_its_own_host_alone(other: &str, vouches: bool) {
        let url = Url::parse(other).unwrap();
        assert_eq!(endpoint("https://minio.spark:9000").ca_bundle_for(&url).is_some(), vouches);
    }

    #[test]
    fn without_tls_nothing_is_shown() {
        for (url, shows) in [("http://minio.spark:9000", false), ("https://minio.spark:9000", true)]
        {
            let endpoint = endpoint(url);
            let nobody = Principal::anonymous(&endpoint.id);
            assert_eq!(endpoint.seen_as(nobody) != nobody, shows, "{url}");
            assert_eq!(endpoint.trust.client_certificate.is_some(), shows, "{url}");
        }
    }

    #[test]
    fn a_secret_adds_to_what_is_configured() {
        let configured = endpoint("https://minio.spark:9000");
        let more = endpoint("https://minio.spark:9000").trust;
        let shown = more.client_certificate.clone();
        let both = configured.with(Trust { ca_bundle: None, client_certificate: shown });
        assert_eq!(both.id, configured.id, "the configured bundle vouches for it as before");
        let other = configured.with(Trust { client_certificate: None, ..more });
        assert_ne!(other.id, configured.id);
        assert!(other.trust.client_certificate.is_none());
    }
}
