//! Endpoints: what a name or URL leads to, by which way, and whose certificates vouch for it.

use std::sync::Arc;

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

use super::{agent::UserAgent, guard::Guarded, page::Whole};
use crate::{
    config::{EndpointConfig, Timeouts},
    object::EndpointId,
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

/// An endpoint, ready to be called.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Its name in the configuration; empty for a URL or AWS itself.
    pub(super) name: String,
    pub(super) id: EndpointId,
    pub(super) config: EndpointConfig,
    pub(super) route: Route,
    http: SharedHttpClient,
    ca_bundle: Option<Arc<[u8]>>,
}

impl Endpoint {
    /// Prepares the connections.
    ///
    /// # Errors
    /// What the CA bundle must be.
    pub(super) fn new(
        name: &str,
        config: EndpointConfig,
        ca_bundle: Option<Vec<u8>>,
        route: Route,
    ) -> Result<Self, String> {
        let id = EndpointId::new(config.url.as_str(), ca_bundle.as_deref());
        let http = http_client(&config.url, ca_bundle.as_deref(), route)?;
        let ca_bundle = ca_bundle.map(Into::into);
        Ok(Self { name: name.to_owned(), id, config, route, http, ca_bundle })
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

    /// Connections to another service that belongs to this endpoint.
    pub(super) fn http_to(&self, url: &Url, route: Route) -> Result<SharedHttpClient, String> {
        if self.config.url.origin() == url.origin() {
            return Ok(self.http.clone());
        }
        http_client(url, self.ca_bundle_for(url), route)
    }

    /// The CA bundle, if it vouches for another service too: only on the same host. It replaces the
    /// system's roots, and a service elsewhere is likely to have a certificate of theirs.
    fn ca_bundle_for(&self, url: &Url) -> Option<&[u8]> {
        self.ca_bundle.as_deref().filter(|_| self.config.url.host() == url.host())
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
pub(super) fn read_bundle(endpoint: &EndpointConfig) -> Result<Option<Vec<u8>>, String> {
    let Some(path) = &endpoint.ca_bundle else { return Ok(None) };
    let shown = path.display();
    std::fs::read(path).map(Some).map_err(|error| format!("cannot read {shown}: {error}"))
}

/// A pool of connections. A plain `http://` endpoint costs no TLS state; a CA bundle replaces the
/// system's roots, so that a private endpoint is vouched for by its own CA and nobody else.
fn http_client(
    url: &Url,
    ca_bundle: Option<&[u8]>,
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
    Ok(pool(tls, route))
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

    #[test_case("https://minio.spark:9000", true; "the endpoint itself")]
    #[test_case("https://minio.spark:9443", true; "another port")]
    #[test_case("https://sts.spark:9000", false; "another host")]
    #[test_case("https://sts.eu-west-1.amazonaws.com", false; "a public service")]
    fn a_bundle_vouches_for_its_own_host_alone(other: &str, vouches: bool) {
        let url = |text| Url::parse(text).unwrap();
        // Without TLS the bundle is not looked into.
        let config = EndpointConfig::for_url(url("http://minio.spark:9000"), "us-east-1");
        let endpoint = Endpoint::new("minio", config, Some(b"PEM".to_vec()), Route::Configured);
        assert_eq!(endpoint.unwrap().ca_bundle_for(&url(other)).is_some(), vouches);
    }
}
