//! Connections on which the driver shows a client certificate (mutual TLS).
//!
//! The SDK's connector has no place for one, so these connections are made here, of the same parts
//! (hyper, hyper-rustls) and by the same rules: the environment's proxy for configured endpoints
//! alone, checked addresses for URLs that a wildcard allows, one limit for connecting and the TLS
//! handshake. Each pool has one certificate, and so has each of its connections and each TLS session
//! that they resume.
//!
//! HTTP/1.1 alone is offered: parallel ranges of one object get a connection each, instead of one
//! connection's share.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        dns::ResolveDns,
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
};
use aws_smithy_types::body::SdkBody;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{self, dns::Name, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, client::WantsClientCert, crypto::ring,
    sign::SingleCertAndKey,
};
use tokio::net::TcpStream;
use tower::{ServiceExt, service_fn, timeout::Timeout, util::BoxCloneSyncService};

use super::{endpoint::Route, guard::Guarded};
use crate::certificate::{CaBundle, ClientCertificate};

/// TCP, or TLS to a proxy.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type Resolver = BoxCloneSyncService<Name, std::vec::IntoIter<SocketAddr>, BoxError>;
type Tcp = connect::HttpConnector<Resolver>;
type Connecting = BoxFuture<'static, Result<Stream, BoxError>>;
type Way = BoxCloneSyncService<Uri, Stream, BoxError>;
/// TLS with the certificate, over any way.
type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<Stream>, BoxError>;

/// A pool of connections that show a certificate.
struct Pool(Client<Connector, SdkBody>);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool(..)")
    }
}

impl HttpConnector for Pool {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let answer = self.0.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Makes a pool, of which each connection shows `certificate`, and takes at most `limit` until it
/// stands. The system's roots vouch for the endpoint if there is no bundle.
pub(super) fn pool(
    certificate: &ClientCertificate,
    ca_bundle: Option<&CaBundle>,
    route: Route,
    limit: Duration,
) -> SharedHttpClient {
    let roots = ca_bundle.map_or_else(|| &*SYSTEM_ROOTS, CaBundle::roots);
    let shown = SingleCertAndKey::from(certificate.key().clone());
    let mut tls = config(roots).with_client_cert_resolver(Arc::new(shown));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = HttpsConnector::from((way(roots, route), tls));
    let connector = BoxCloneSyncService::new(Timeout::new(connector, limit));
    let mut client = Client::builder(TokioExecutor::new());
    let pool = Pool(client.pool_timer(TokioTimer::new()).build(connector));
    let pool = SharedHttpConnector::new(pool);
    http_client_fn(move |_, _| pool.clone())
}

/// The certificates that the system trusts, read once.
static SYSTEM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (good, bad) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(good, bad, errors = found.errors.len(), "the system's certificates were read");
    Arc::new(roots)
});

fn config(roots: &Arc<RootCertStore>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(Arc::clone(roots))
}

/// Connects to a host, through a proxy if there is one for it.
fn way(roots: &Arc<RootCertStore>, route: Route) -> Way {
    let resolver = service_fn(move |name: Name| async move { addresses(&name, route).await });
    let mut tcp = Tcp::new_with_resolver(BoxCloneSyncService::new(resolver));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // A proxy that speaks TLS itself is not shown the certificate.
    let to_proxy = HttpsConnector::from((tcp.clone(), config(roots).with_no_client_auth()));
    let proxies = match route {
        Route::Configured => Some(Arc::new(Matcher::from_env())),
        Route::Direct | Route::Guarded => None,
    };
    BoxCloneSyncService::new(service_fn(move |host: Uri| {
        match proxies.as_ref().and_then(|proxies| proxies.intercept(&host)) {
            Some(proxy) => through(&proxy, to_proxy.clone(), host),
            None => tcp.clone().oneshot(host).map_ok(MaybeHttpsStream::Http).err_into().boxed(),
        }
    }))
}

/// Connects to a host through a proxy.
fn through(proxy: &Intercept, to_proxy: HttpsConnector<Tcp>, host: Uri) -> Connecting {
    let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
    let tunnel = match proxy.basic_auth() {
        Some(credentials) => tunnel.with_auth(credentials.clone()),
        None => tunnel,
    };
    tunnel.oneshot(host).err_into().boxed()
}

/// Resolves a name, once.
async fn addresses(name: &Name, route: Route) -> Result<std::vec::IntoIter<SocketAddr>, BoxError> {
    let name = name.as_str();
    let found: Vec<_> = match route {
        Route::Guarded => {
            let allowed = Guarded.resolve_dns(name).await?;
            allowed.into_iter().map(|address| SocketAddr::new(address, 0)).collect()
        }
        Route::Configured | Route::Direct => tokio::net::lookup_host((name, 0)).await?.collect(),
    };
    Ok(found.into_iter())
}
