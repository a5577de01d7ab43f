//! The keys of a volume's Secret, in every spelling that people already have.
//!
//! Values live in memory only and are overwritten when dropped. No message and no `Debug` output
//! contains one; messages name keys. Unknown keys are not looked at, because Secrets are shared
//! with other programs.

use std::{collections::HashMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::tokens::{ServiceTokens, TOKENS_KEY};
use crate::{
    certificate::{CaBundle, CertificateChain, ClientCertificate, Misfit, PrivateKey},
    object::SseKeyDigest,
    problems::Problems,
};

const ACCESS_KEY_ID: [&str; 4] = ["AWS_ACCESS_KEY_ID", "accessKeyID", "access_key", "accesskey"];
const SECRET_ACCESS_KEY: [&str; 4] =
    ["AWS_SECRET_ACCESS_KEY", "secretAccessKey", "secret_key", "secretkey"];
const SESSION_TOKEN: [&str; 4] =
    ["AWS_SESSION_TOKEN", "sessionToken", "session_token", "sessiontoken"];
const SSE_CUSTOMER_KEY: [&str; 1] = ["sseCustomerKey"];
const CA_BUNDLE: [&str; 1] = ["ca.crt"];
const CLIENT_CERTIFICATE: [&str; 1] = ["tls.crt"];
const CLIENT_KEY: [&str; 1] = ["tls.key"];

/// Every key of a Secret that means something, one list for each meaning.
pub const SECRET_KEYS: [&[&str]; 7] = [
    &ACCESS_KEY_ID,
    &SECRET_ACCESS_KEY,
    &SESSION_TOKEN,
    &SSE_CUSTOMER_KEY,
    &CA_BUNDLE,
    &CLIENT_CERTIFICATE,
    &CLIENT_KEY,
];

/// What a volume's Secret holds.
#[derive(Debug, Clone, Default)]
pub struct VolumeSecrets {
    /// Credentials for S3.
    pub keys: Option<AccessKeys>,
    /// The key that the customer's objects are encrypted with.
    pub sse_customer_key: Option<SseCustomerKey>,
    /// The certificates that vouch for the endpoint.
    pub ca_bundle: Option<CaBundle>,
    /// What is shown to an endpoint that wants to know its clients by TLS.
    pub client_certificate: Option<ClientCertificate>,
    /// The pod's tokens, if the kubelet puts them among the secrets.
    pub tokens: Option<ServiceTokens>,
}

/// A static or temporary credential.
#[derive(Clone)]
pub struct AccessKeys {
    /// The part that names the credential; not secret, and yet never shown in full.
    pub access_key_id: String,
    /// The part that signs.
    pub secret_access_key: SecretString,
    /// What a temporary credential needs besides.
    pub session_token: Option<SecretString>,
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = (self.access_key_id.len() / 2).min(4);
        let id: String = self.access_key_id.chars().take(shown).collect();
        f.debug_struct("AccessKeys")
            .field("access_key_id", &format!("{id}.."))
            .finish_non_exhaustive()
    }
}

/// A key for server-side encryption with customer keys (SSE-C).
#[derive(Clone)]
pub struct SseCustomerKey {
    base64: SecretString,
    base64_md5: String,
    digest: SseKeyDigest,
}

impl SseCustomerKey {
    /// Decodes a key.
    ///
    /// # Errors
    /// What the value must be; never the value.
    fn parse(text: &str) -> Result<Self, String> {
        const RULE: &str = "must be the base64 form of exactly 32 bytes";
        // Room for what any key decodes to, so that no growing buffer leaves copies behind.
        let mut key = Zeroizing::new(vec![0; text.len()]);
        let length = STANDARD.decode_slice(text, &mut key).map_err(|_| RULE.to_owned())?;
        let key = &key[..length];
        if length != 32 {
            return Err(format!("{RULE}, and is of {length}"));
        }
        let mut digest = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key");
        digest.update(b"s3view sse-c key");
        Ok(Self {
            base64: SecretString::from(text),
            base64_md5: STANDARD.encode(Md5::digest(key)),
            digest: SseKeyDigest(digest.finalize().into_bytes().into()),
        })
    }

    /// Tells this key from others.
    pub fn digest(&self) -> SseKeyDigest {
        self.digest
    }

    /// The value of the header `x-amz-server-side-encryption-customer-key`: the key itself.
    pub fn base64(&self) -> &str {
        self.base64.expose_secret()
    }

    /// The value of the header `x-amz-server-side-encryption-customer-key-MD5`.
    pub fn base64_md5(&self) -> &str {
        &self.base64_md5
    }
}

impl fmt::Debug for SseCustomerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SseCustomerKey(..)")
    }
}

impl VolumeSecrets {
    /// Parses the secrets of a publish request, and overwrites the values that it was given.
    ///
    /// # Errors
    /// Every problem, by the names of the keys.
    pub fn parse(secrets: HashMap<String, String>) -> Result<Self, Problems> {
        let mut reader = Reader::new(secrets);
        let keys = reader.keys();
        let sse_customer_key = reader.sse_customer_key();
        let ca_bundle = reader.ca_bundle();
        let client_certificate = reader.client_certificate();
        let tokens = reader.tokens();
        reader.problems.into_result(Self {
            keys,
            sse_customer_key,
            ca_bundle,
            client_certificate,
            tokens,
        })
    }
}

struct Reader {
    values: HashMap<String, Zeroizing<String>>,
    problems: Problems,
}

/// A value and the spelling that it was found under.
struct Found<'a> {
    name: &'static str,
    value: &'a str,
}

impl Reader {
    fn new(secrets: HashMap<String, String>) -> Self {
        let values = secrets.into_iter().map(|(name, value)| (name, Zeroizing::new(value)));
        Self { values: values.collect(), problems: Problems::default() }
    }

    fn keys(&mut self) -> Option<AccessKeys> {
        let Self { values, problems } = self;
        let id = find(values, problems, &ACCESS_KEY_ID);
        let secret = find(values, problems, &SECRET_ACCESS_KEY);
        let token = find(values, problems, &SESSION_TOKEN);
        for found in [&id, &secret, &token].into_iter().flatten() {
            check_blank(problems, found);
        }
        for found in [&id, &token].into_iter().flatten() {
            check_header(problems, found);
        }
        match (id, secret) {
            (Some(id), Some(secret)) => Some(AccessKeys {
                access_key_id: id.value.to_owned(),
                secret_access_key: secret.value.into(),
                session_token: token.map(|token| token.value.into()),
            }),
            (Some(id), None) => {
                lonely(problems, id.name, partner(id.name, &ACCESS_KEY_ID, &SECRET_ACCESS_KEY))
            }
            (None, Some(secret)) => {
                let id = partner(secret.name, &SECRET_ACCESS_KEY, &ACCESS_KEY_ID);
                lonely(problems, secret.name, id)
            }
            (None, None) => lonely(problems, token?.name, "an access key and a secret key"),
        }
    }

    fn sse_customer_key(&mut self) -> Option<SseCustomerKey> {
        let Self { values, problems } = self;
        let found = find(values, problems, &SSE_CUSTOMER_KEY)?;
        if !check_blank(problems, &found) {
            return None;
        }
        let key = SseCustomerKey::parse(found.value);
        key.map_err(|text| problem(problems, found.name, text)).ok()
    }

    fn ca_bundle(&mut self) -> Option<CaBundle> {
        let Self { values, problems } = self;
        let found = find(values, problems, &CA_BUNDLE)?;
        let bundle = CaBundle::parse(found.value.as_bytes());
        bundle.map_err(|text| problem(problems, found.name, text)).ok()
    }

    fn client_certificate(&mut self) -> Option<ClientCertificate> {
        let Self { values, problems } = self;
        let certificate = find(values, problems, &CLIENT_CERTIFICATE);
        let key = find(values, problems, &CLIENT_KEY);
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(one), None) => return lonely(problems, one.name, CLIENT_KEY[0]),
            (None, Some(one)) => return lonely(problems, one.name, CLIENT_CERTIFICATE[0]),
            (None, None) => return None,
        };
        let chain = CertificateChain::parse(certificate.value);
        let chain = chain.map_err(|text| problem(problems, certificate.name, text)).ok();
        let parsed = PrivateKey::parse(key.value);
        let parsed = parsed.map_err(|text| problem(problems, key.name, text)).ok();
        match ClientCertificate::new(chain?, &parsed?) {
            Ok(pair) => Some(pair),
            Err(Misfit::Certificate(text)) => {
                problem(problems, certificate.name, text);
                None
            }
            Err(Misfit::Key(text)) => {
                problem(problems, key.name, text);
                None
            }
        }
    }

    fn tokens(&mut self) -> Option<ServiceTokens> {
        let Self { values, problems } = self;
        let tokens = ServiceTokens::parse(values.get(TOKENS_KEY)?);
        tokens.map_err(|text| problem(problems, TOKENS_KEY, text)).ok()?
    }
}

/// The one value that stands under any of these spellings; they may repeat, but not differ.
fn find<'a>(
    values: &'a HashMap<String, Zeroizing<String>>,
    problems: &mut Problems,
    names: &[&'static str],
) -> Option<Found<'a>> {
    let found = |name: &&'static str| Some(Found { name, value: values.get(*name)? });
    let mut all = names.iter().filter_map(found);
    let first = all.next()?;
    for other in all {
        if other.value != first.value {
            let text = format!("differs from {}, which means the same; remove one", first.name);
            problem(problems, other.name, text);
        }
    }
    if first.value.is_empty() {
        problem(problems, first.name, "must not be empty; remove it or give it a value");
    }
    Some(first)
}

/// Reports white space around a value: a newline that `echo` added makes every signature wrong.
fn check_blank(problems: &mut Problems, found: &Found<'_>) -> bool {
    let good = found.value.trim() == found.value;
    if !good {
        let text = "must not begin or end with white space or a newline; encode it with \
                    \"echo -n VALUE | base64\"";
        problem(problems, found.name, text);
    }
    good
}

/// The longest value that is sent in a header, in bytes.
const MAX_HEADER: usize = 16 << 10;

/// Reports what cannot stand in an HTTP header.
fn check_header(problems: &mut Problems, found: &Found<'_>) {
    if found.value.trim().bytes().any(|byte| !byte.is_ascii_graphic()) {
        problem(problems, found.name, "must be printable ASCII without white space");
    }
    if found.value.len() > MAX_HEADER {
        problem(problems, found.name, format!("must be at most {MAX_HEADER} bytes long"));
    }
}

fn lonely<T>(problems: &mut Problems, name: &str, missing: &str) -> Option<T> {
    problem(problems, name, format!("stands alone; add {missing}"));
    None
}

/// The other half's spelling in the same family.
fn partner(name: &str, names: &[&str], partners: &[&'static str]) -> &'static str {
    let index = names.iter().position(|candidate| *candidate == name).unwrap_or(0);
    partners.get(index).copied().unwrap_or_default()
}

fn problem(problems: &mut Problems, name: &str, text: impl Into<String>) {
    problems.add(format!("Secret key {name}"), text);
}

#[cfg(test)]
mod tests;
