//! Who may do what: credentials, and read grants for those that are restricted.
//!
//! By default every credential may do everything and anonymous requests nothing. A restricted one
//! may only read what it was granted. Rights are looked up on every request, so a test can withdraw
//! one while clients keep their connections.

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::RwLock;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use super::calls::Call;

/// The access key that stands for requests without a signature.
pub(crate) const ANONYMOUS: &str = "";

/// The account that owns every bucket (`x-amz-expected-bucket-owner`).
pub(crate) const OWNER: &str = "123456789012";

#[derive(Debug, PartialEq, Eq)]
struct Grant {
    bucket: String,
    prefix: String,
}

/// Credentials and grants, shared by the server and the test.
pub(crate) struct Rights {
    secrets: RwLock<HashMap<String, SecretKey>>,
    restricted: RwLock<HashMap<String, Vec<Grant>>>,
}

impl Rights {
    /// Rights with these credentials, none of them restricted.
    pub(crate) fn new(credentials: Vec<(String, String)>) -> Self {
        let secrets = credentials.into_iter().map(|(key, secret)| (key, secret.into())).collect();
        let restricted = HashMap::from([(ANONYMOUS.to_owned(), Vec::new())]);
        Self { secrets: RwLock::new(secrets), restricted: RwLock::new(restricted) }
    }

    /// Adds a credential, or gives it another secret.
    pub(crate) fn add_credential(&self, access_key: &str, secret_key: &str) {
        self.secrets.write().insert(access_key.to_owned(), secret_key.into());
    }

    /// Makes an access key unknown.
    pub(crate) fn remove_credential(&self, access_key: &str) {
        self.secrets.write().remove(access_key);
    }

    /// From now on `access_key` may only read what it was granted.
    pub(crate) fn restrict(&self, access_key: &str) {
        self.restricted.write().entry(access_key.to_owned()).or_default();
    }

    /// Lets a restricted `access_key` list and read `bucket` below `prefix`. Grant to [`ANONYMOUS`]
    /// for a public bucket.
    pub(crate) fn grant(&self, access_key: &str, bucket: &str, prefix: &str) {
        let grant = Grant { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        self.restricted.write().entry(access_key.to_owned()).or_default().push(grant);
    }

    /// Withdraws a grant.
    pub(crate) fn revoke(&self, access_key: &str, bucket: &str, prefix: &str) {
        if let Some(grants) = self.restricted.write().get_mut(access_key) {
            grants.retain(|grant| grant.bucket != bucket || grant.prefix != prefix);
        }
    }

    fn allows(&self, access_key: &str, call: &Call) -> bool {
        let restricted = self.restricted.read();
        let Some(grants) = restricted.get(access_key) else { return true };
        let mut grants = grants.iter().filter(|grant| grant.bucket == call.bucket);
        match call.operation {
            "HeadBucket" | "GetBucketLocation" | "GetBucketVersioning" => grants.next().is_some(),
            "GetObject" | "HeadObject" | "ListObjects" | "ListObjectsV2" | "ListObjectVersions" => {
                grants.any(|grant| call.key.starts_with(&grant.prefix))
            }
            _ => false,
        }
    }
}

/// The view of [`Rights`] that s3s asks.
pub(crate) struct Gate(pub(crate) Arc<Rights>);

#[async_trait::async_trait]
impl S3Auth for Gate {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let secret = self.0.secrets.read().get(access_key).cloned();
        secret.ok_or_else(|| s3_error!(InvalidAccessKeyId, "the access key id is not known"))
    }
}

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let access_key = cx.credentials().map(|credentials| credentials.access_key.clone());
        let call = cx.extensions_mut().get::<Arc<Call>>().map(Arc::clone);
        let call = call.expect("wire puts the call there");
        self.check_call(access_key.as_deref(), cx.headers(), &call)
    }
}

impl Gate {
    /// Whether a call may be answered; no access key means that it is not signed.
    pub(crate) fn check_call(
        &self,
        access_key: Option<&str>,
        headers: &HeaderMap,
        call: &Call,
    ) -> S3Result<()> {
        let owner = headers.get("x-amz-expected-bucket-owner");
        if owner.is_some_and(|owner| owner != OWNER) {
            return Err(s3_error!(AccessDenied, "another account owns the bucket"));
        }
        if self.0.allows(access_key.unwrap_or(ANONYMOUS), call) {
            Ok(())
        } else {
            Err(s3_error!(AccessDenied, "Access Denied"))
        }
    }
}
