//! TLS in front of a server: authorities that issue certificates, doors that end TLS and pass the bytes
//! on, and a proxy that passes on what it cannot read.
//!
//! A door works before any server, so the same cases run against the embedded one and a real one; and
//! as it knows nothing of what it passes on, what it tells is about connections alone.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
        version::{TLS12, TLS13},
    },
};

/// A host that no resolver knows.
pub(crate) const NOWHERE: &str = "s3.invalid";

/// Who issues certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, in PEM form.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// As a Secret has it.
    pub(crate) fn secret(&self) -> [(&str, &str); 2] {
        [("tls.crt", &self.certificate), ("tls.key", &self.key)]
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("a certificate")
    }
}

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Writes its certificate to a file.
    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, &self.pem).expect("a writable directory");
    }

    /// A pair for a client, or for a server on the loopback interface.
    pub(crate) fn issue(&self, name: &str) -> Pair {
        self.issue_until(name, 2100)
    }

    /// A pair that has expired long ago.
    pub(crate) fn issue_expired(&self, name: &str) -> Pair {
        self.issue_until(name, 2001)
    }

    fn issue_until(&self, name: &str, year: i32) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let names = ["127.0.0.1", "localhost", NOWHERE].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        let pem = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("a certificate");
        roots.add(pem).expect("a good certificate");
        Arc::new(roots)
    }
}

/// What a door wants of its clients.
#[derive(Clone, Copy)]
pub(crate) enum Wants<'a> {
    /// A certificate of this authority.
    Pair(&'a Authority),
    /// Likewise, by TLS 1.2.
    OldPair(&'a Authority),
    /// A certificate of this authority, or none.
    Maybe(&'a Authority),
}

/// A listening port; it closes when dropped, with all its connections.
struct Port {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Port {
    fn serve<F>(converse: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("a socket can be asked without waiting");
        drop(runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let conversation = converse(stream);
                #[expect(clippy::disallowed_methods, reason = "the port's runtime owns the task")]
                drop(tokio::spawn(async move {
                    // Who is refused or goes away is no event.
                    conversation.await.unwrap_or(());
                }));
            }
        }));
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What came through a door with one certificate, or with none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// How many connections.
    pub(crate) connections: u32,
    /// How many bytes the clients sent.
    pub(crate) bytes: u64,
}

type Log = Arc<Mutex<HashMap<Option<CertificateDer<'static>>, Passed>>>;

/// TLS in front of a server.
pub(crate) struct Door {
    port: Port,
    log: Log,
    /// How many connections were begun, refused ones included.
    knocks: Arc<AtomicU32>,
}

impl Door {
    /// Opens a door to `server` (`http://host:port`), whose certificate is of `authority`.
    pub(crate) fn open(server: &str, authority: &Authority, wants: Wants<'_>) -> Self {
        let server: SocketAddr =
            server.trim_start_matches("http://").parse().expect("the tests' URLs have addresses");
        let acceptor = TlsAcceptor::from(Arc::new(config(authority, wants)));
        let (log, knocks) = (Log::default(), Arc::<AtomicU32>::default());
        let (seen, counter) = (Arc::clone(&log), Arc::clone(&knocks));
        let port = Port::serve(move |client| {
            counter.fetch_add(1, Ordering::SeqCst);
            let (acceptor, log) = (acceptor.clone(), Arc::clone(&seen));
            async move {
                let client = acceptor.accept(client).await?;
                let shown = client.get_ref().1.peer_certificates().and_then(|all| all.first());
                let shown = shown.cloned().map(CertificateDer::into_owned);
                log.lock().entry(shown.clone()).or_default().connections += 1;
                let server = TcpStream::connect(server).await?;
                pass(client, server, |bytes| {
                    log.lock().entry(shown.clone()).or_default().bytes += bytes;
                })
                .await
            }
        });
        Self { port, log, knocks }
    }

    /// The URL of the server behind it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.port.address)
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port.address.port()
    }

    /// What came through with this pair, or with none.
    pub(crate) fn passed(&self, pair: Option<&Pair>) -> Passed {
        self.log.lock().get(&pair.map(Pair::der)).copied().unwrap_or_default()
    }

    /// How many connections were begun.
    pub(crate) fn knocks(&self) -> u32 {
        self.knocks.load(Ordering::SeqCst)
    }
}

fn config(authority: &Authority, wants: Wants<'_>) -> ServerConfig {
    let (both, old): (&[&SupportedProtocolVersion], &[&SupportedProtocolVersion]) =
        (&[&TLS13, &TLS12], &[&TLS12]);
    let (clients, versions) = match wants {
        Wants::Pair(clients) | Wants::Maybe(clients) => (clients, both),
        Wants::OldPair(clients) => (clients, old),
    };
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(clients.roots(), Arc::clone(&provider));
    let verifier = match wants {
        Wants::Maybe(_) => verifier.allow_unauthenticated(),
        Wants::Pair(_) | Wants::OldPair(_) => verifier,
    };
    let own = authority.issue("a server");
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions that ring has")
        .with_client_cert_verifier(verifier.build().expect("an authority to verify with"))
        .with_single_cert(vec![own.der()], key)
        .expect("a pair that fits");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Passes bytes both ways until either side ends; `sent` hears of what the client sends.
async fn pass(
    client: impl AsyncRead + AsyncWrite + Send,
    server: TcpStream,
    sent: impl Fn(u64) + Send,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            sent(length as u64);
            to_server.write_all(&buffer[..length]).await?;
        }
    };
    let down = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}

/// A proxy that leads every host to one door.
pub(crate) struct Proxy {
    port: Port,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Starts a proxy to `door`.
    pub(crate) fn start(door: &Door) -> Self {
        let (door, asked) = (door.port.address, Arc::<Mutex<Vec<String>>>::default());
        let log = Arc::clone(&asked);
        let port = Port::serve(move |mut client| {
            let log = Arc::clone(&log);
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                log.lock().push(head.lines().next().unwrap_or_default().to_owned());
                let mut server = TcpStream::connect(door).await?;
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                copy_bidirectional(&mut client, &mut server).await.map(drop)
            }
        });
        Self { port, asked }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.port.address)
    }

    /// The first lines of what it was asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}
