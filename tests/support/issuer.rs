//! An `OpenID` provider of the tests' own, and a token service for the embedded server, on loopback.
//!
//! The provider signs tokens as a cluster does and serves its keys, so that a real MinIO verifies
//! them. The token service verifies them too (signature, audience, time), and mints credentials that
//! the embedded server knows until they expire: a client that does not renew them is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use parking_lot::Mutex;
use ring::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING,
        EcdsaKeyPair, KeyPair, UnparsedPublicKey,
    },
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

use super::s3::Rights;

/// The audience that the services here are known by.
pub(crate) const AUDIENCE: &str = "s3view";

/// The key under which the kubelet brings tokens.
pub(crate) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

const KEY_ID: &str = "tests";

/// What a token says.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) audience: String,
    pub(crate) life: Duration,
    /// The MinIO policy of its holder.
    pub(crate) policy: Option<String>,
}

impl Token {
    /// A good token of a service account for an hour.
    pub(crate) fn of(namespace: &str, service_account: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            audience: AUDIENCE.to_owned(),
            life: Duration::from_hours(1),
            policy: None,
        }
    }

    /// The same for so long.
    pub(crate) fn living(self, life: Duration) -> Self {
        Self { life, ..self }
    }

    /// The same for another service.
    pub(crate) fn for_audience(self, audience: &str) -> Self {
        Self { audience: audience.to_owned(), ..self }
    }

    /// What the token service knows its holder by.
    pub(crate) fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }
}

/// A running provider; it ends when dropped.
pub(crate) struct Issuer {
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
    random: SystemRandom,
    port: Port,
}

/// An HTTP server on threads of its own: a test's runtime may be blocked.
pub(super) struct Port {
    url: String,
    runtime: Option<Runtime>,
}

impl Port {
    /// Serves on a free port. Not to be called in a runtime.
    pub(super) fn serve(router: impl FnOnce(&str) -> Router) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let url = format!("http://{address}");
        let router = router(&url);
        drop(runtime.spawn(async move { axum::serve(listener, router).await }));
        Self { url, runtime: Some(runtime) }
    }
}

impl Port {
    /// Where it listens.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Issuer {
    /// Starts a provider with a key of its own.
    pub(crate) fn start() -> Self {
        // A case may be async; a runtime cannot be entered from one.
        std::thread::spawn(|| {
            let random = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
            let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random);
            let key = key.expect("a key that was just made");
            let certificate = certificate(pkcs8.as_ref(), &random);
            let port = Port::serve(|url| provider(url, key.public_key().as_ref(), &certificate));
            Self { key, certificate, random, port }
        })
        .join()
        .expect("the provider starts")
    }

    /// The issuer of its tokens.
    pub(crate) fn url(&self) -> &str {
        &self.port.url
    }

    /// A signed token.
    pub(crate) fn sign(&self, token: &Token) -> String {
        let now = seconds(SystemTime::now());
        let claims = json!({
            "iss": self.url(),
            "aud": [token.audience],
            "sub": token.subject(),
            "iat": now,
            "nbf": now,
            "exp": now + token.life.as_secs(),
            "policy": token.policy,
            "kubernetes.io": {
                "namespace": token.namespace,
                "serviceaccount": { "name": token.service_account, "uid": "u" },
            },
        });
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": KEY_ID });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Signed tokens as the kubelet brings them.
    pub(crate) fn issue(&self, tokens: &[Token]) -> String {
        let entry = |token: &Token| {
            let expires = SystemTime::now() + token.life;
            let expires = jiff::Timestamp::try_from(expires).expect("a time of this century");
            let value = json!({
                "token": self.sign(token),
                "expirationTimestamp": expires.to_string(),
            });
            (token.audience.clone(), value)
        };
        Value::Object(tokens.iter().map(entry).collect()).to_string()
    }

    /// What Ceph knows the certificate of its key by.
    pub(crate) fn thumbprint(&self) -> String {
        let sha1 = digest(&SHA1_FOR_LEGACY_USE_ONLY, &self.certificate);
        hex::encode_upper(sha1)
    }

    fn public_key(&self) -> Vec<u8> {
        self.key.public_key().as_ref().to_vec()
    }
}

/// A certificate of the key's own (RFC 5280, version 1), since Ceph takes keys from nothing else.
fn certificate(pkcs8: &[u8], random: &SystemRandom) -> Vec<u8> {
    const SEQUENCE: u8 = 0x30;
    /// ecdsa-with-SHA256.
    const SIGNATURE: [u8; 12] = *b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    /// id-ecPublicKey on prime256v1, and the head of the bit string that holds the point.
    const PUBLIC_KEY: &[u8] =
        b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
    let der = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        let length = u16::try_from(content.len()).expect("a short certificate").to_be_bytes();
        let length: &[u8] = match length {
            [0, low @ ..0x80] => &[low],
            [0, low] => &[0x81, low],
            [high, low] => &[0x82, high, low],
        };
        [&[tag], length, &content].concat()
    };
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, random).expect("a good key");
    let (serial, nobody) = ([2, 1, 1], [SEQUENCE, 0]);
    let time = |text: &[u8]| [&[0x17, 13], text].concat();
    let validity = der(SEQUENCE, &[&time(b"250101000000Z"), &time(b"491231235959Z")]);
    let point = der(SEQUENCE, &[PUBLIC_KEY, key.public_key().as_ref()]);
    let body = der(SEQUENCE, &[&serial, &SIGNATURE, &nobody, &validity, &nobody, &point]);
    let signature = key.sign(random, &body).expect("a signature");
    der(SEQUENCE, &[&body, &SIGNATURE, &der(3, &[&[0], signature.as_ref()])])
}

fn provider(url: &str, point: &[u8], certificate: &[u8]) -> Router {
    // An uncompressed point: 4, x, y.
    let coordinate = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
    let keys = json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID,
        "x": coordinate(1..33), "y": coordinate(33..65), "x5c": [STANDARD.encode(certificate)],
    }] });
    let discovery = json!({
        "issuer": url,
        "jwks_uri": format!("{url}/keys"),
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "scopes_supported": ["openid"],
        "claims_supported": ["sub", "aud", "exp", "policy"],
    });
    let answer = |value: Value| {
        let text = value.to_string();
        get(move || async move { ([("content-type", "application/json")], text) })
    };
    Router::new()
        .route("/.well-known/openid-configuration", answer(discovery))
        .route("/keys", answer(keys))
}

/// A token service beside an embedded server; it ends when dropped.
pub(crate) struct Sts {
    desk: Arc<Desk>,
    port: Port,
}

struct Desk {
    public_key: Vec<u8>,
    rights: Arc<Rights>,
    /// What a subject may read; everything if it is not named.
    grants: Mutex<HashMap<String, Vec<(String, String)>>>,
    role: Mutex<Option<String>>,
    life: Mutex<Option<Duration>>,
    exchanges: AtomicU32,
    is_down: AtomicBool,
    latency: Mutex<Duration>,
}

impl Sts {
    /// Starts a service that believes `issuer`.
    pub(crate) fn start(issuer: &Issuer, rights: Arc<Rights>) -> Self {
        let desk = Arc::new(Desk {
            public_key: issuer.public_key(),
            rights,
            grants: Mutex::default(),
            role: Mutex::default(),
            life: Mutex::default(),
            exchanges: AtomicU32::new(0),
            is_down: AtomicBool::new(false),
            latency: Mutex::default(),
        });
        let state = Arc::clone(&desk);
        let serve =
            move || Port::serve(|_| Router::new().route("/", post(exchange)).with_state(state));
        let port = std::thread::spawn(serve).join().expect("the service starts");
        Self { desk, port }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.port.url
    }

    /// From now on the subject may only read what it is granted.
    pub(crate) fn grant(&self, subject: &str, bucket: &str, prefix: &str) {
        let grant = (bucket.to_owned(), prefix.to_owned());
        self.desk.grants.lock().entry(subject.to_owned()).or_default().push(grant);
    }

    /// From now on only this role is given.
    pub(crate) fn set_role(&self, role: &str) {
        *self.desk.role.lock() = Some(role.to_owned());
    }

    /// From now on credentials live so long, whatever their token says.
    pub(crate) fn set_life(&self, life: Duration) {
        *self.desk.life.lock() = Some(life);
    }

    /// From now on every request fails, or none.
    pub(crate) fn set_down(&self, down: bool) {
        self.desk.is_down.store(down, Ordering::SeqCst);
    }

    /// From now on every answer takes so long.
    pub(crate) fn set_latency(&self, latency: Duration) {
        *self.desk.latency.lock() = latency;
    }

    /// How often credentials were asked for.
    pub(crate) fn exchanges(&self) -> u32 {
        self.desk.exchanges.load(Ordering::SeqCst)
    }
}

async fn exchange(State(desk): State<Arc<Desk>>, form: String) -> Response {
    let form: HashMap<String, String> =
        url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    let number = desk.exchanges.fetch_add(1, Ordering::SeqCst);
    let latency = *desk.latency.lock();
    tokio::time::sleep(latency).await;
    if desk.is_down.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let value = |key: &str| form.get(key).map(String::as_str);
    if value("Action") != Some("AssumeRoleWithWebIdentity") {
        return refusal("ValidationError", "unknown action");
    }
    if value("RoleSessionName").is_none_or(|name| !(2..=64).contains(&name.len())) {
        return refusal("ValidationError", "RoleSessionName must have 2 to 64 characters");
    }
    if desk.role.lock().as_deref().is_some_and(|role| value("RoleArn") != Some(role)) {
        return refusal("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    }
    let claims = value("WebIdentityToken").and_then(|token| verified(&desk.public_key, token));
    let Some(claims) = claims else { return refusal("InvalidIdentityToken", "bad signature") };
    if claims["aud"] != json!([AUDIENCE]) {
        // As bad as can be: it quotes the token.
        let token = value("WebIdentityToken").unwrap_or_default();
        return refusal("InvalidIdentityToken", &format!("Incorrect audience of {token}"));
    }
    let expires = claims["exp"].as_u64().unwrap_or_default();
    let now = seconds(SystemTime::now());
    if expires <= now {
        return refusal("ExpiredTokenException", "Token expired");
    }
    let subject = claims["sub"].as_str().unwrap_or_default();
    let life = desk.life.lock().unwrap_or(Duration::from_secs(expires - now));
    credentials(&desk, subject, number, life)
}

fn credentials(desk: &Arc<Desk>, subject: &str, number: u32, life: Duration) -> Response {
    // The secret's mark is for tests that look where it must not be.
    let (key, secret) = (format!("ASIA{number}"), format!("MARKED-STS-SECRET-{number}"));
    if let Some(grants) = desk.grants.lock().get(subject) {
        desk.rights.restrict(&key);
        for (bucket, prefix) in grants {
            desk.rights.grant(&key, bucket, prefix);
        }
    }
    desk.rights.add_credential(&key, &secret);
    let (rights, gone) = (Arc::clone(&desk.rights), key.clone());
    // The port's runtime owns it, and ends with the service.
    #[expect(clippy::disallowed_methods, reason = "the runtime of the service owns the task")]
    drop(tokio::spawn(async move {
        tokio::time::sleep(life).await;
        rights.remove_credential(&gone);
    }));
    let end = jiff::Timestamp::try_from(SystemTime::now() + life).expect("a time of this century");
    let text = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>\
         <SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>MARKED-STS-TOKEN-{number}</SessionToken>\
         <Expiration>{end}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    ([("content-type", "text/xml")], text).into_response()
}

fn refusal(code: &str, message: &str) -> Response {
    let text = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>1</RequestId></ErrorResponse>"
    );
    let status =
        if code == "AccessDenied" { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
    (status, [("content-type", "text/xml")], text).into_response()
}

/// The claims of a token whose signature is good.
fn verified(public_key: &[u8], token: &str) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key);
    key.verify(signed.as_bytes(), &signature).ok()?;
    let claims = URL_SAFE_NO_PAD.decode(signed.split_once('.')?.1).ok()?;
    serde_json::from_slice(&claims).ok()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
