//! Reading S3: who asks, what can go wrong, and (in [`s3`]) the requests themselves.
//!
//! Nothing above [`s3`] knows the AWS SDK: it sees objects, bodies and [`SourceError`]s.

pub mod bound;
pub mod s3;

use std::{fmt, sync::Arc};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{certificate::ClientCertificateDigest, failure::FailureKind, object::EndpointId};

/// Who is asking an endpoint: the identity that S3 authorises, and so the one that clients,
/// listings and proofs of access are kept by.
///
/// A digest over everything that the credential consists of: the key id alone is not an identity,
/// since anybody can send it with another secret. Lives in memory only; a digest of a short secret
/// on disk could be searched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Principal([u8; 32]);

impl Principal {
    /// The holder of a static or temporary credential at an endpoint.
    pub fn credential(
        endpoint: &EndpointId,
        access_key_id: &str,
        secret_access_key: &str,
        session_token: Option<&str>,
    ) -> Self {
        let parts = [access_key_id, secret_access_key];
        Self::digest("credential", endpoint, parts.map(Some).into_iter().chain([session_token]))
    }

    /// The subject of tokens that a token service exchanges for credentials of `role`.
    ///
    /// The audience counts as well: a service may give rights by it.
    pub fn web_identity(endpoint: &EndpointId, exchange: &WebIdentity<'_>) -> Self {
        let WebIdentity { sts, role_arn, audience, subject } = *exchange;
        let parts = [Some(sts), role_arn, Some(audience), Some(subject)];
        Self::digest("web identity", endpoint, parts)
    }

    /// The driver itself, whoever's volume it is for.
    pub fn driver(endpoint: &EndpointId) -> Self {
        Self::digest("driver", endpoint, [])
    }

    /// Nobody in particular: requests are not signed.
    pub fn anonymous(endpoint: &EndpointId) -> Self {
        Self::digest("anonymous", endpoint, [])
    }

    /// The same, where a client certificate is shown besides: a server may give rights by either,
    /// so who shows another one is somebody else.
    #[must_use]
    pub fn showing(self, certificate: &ClientCertificateDigest) -> Self {
        let mut digest = Sha256::new();
        digest.update("client certificate");
        digest.update(self.0);
        digest.update(certificate.as_bytes());
        Self(digest.finalize().into())
    }

    /// The kind goes first, so that no credential can be written that is the principal of another
    /// kind.
    fn digest<'a>(
        kind: &'a str,
        endpoint: &'a EndpointId,
        parts: impl IntoIterator<Item = Option<&'a str>>,
    ) -> Self {
        let mut digest = Sha256::new();
        for part in [Some(kind), Some(endpoint.as_str())].into_iter().chain(parts) {
            digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            digest.update(part.unwrap_or_default());
        }
        Self(digest.finalize().into())
    }
}

/// What a token is exchanged with, and what it says.
#[derive(Debug, Clone, Copy)]
pub struct WebIdentity<'a> {
    /// The URL of the token service.
    pub sts: &'a str,
    /// The role that is asked for.
    pub role_arn: Option<&'a str>,
    /// Whom the token is for.
    pub audience: &'a str,
    /// Whom the token speaks of.
    pub subject: &'a str,
}

/// A secret of the node, with which identities are written to disk: nobody who has the disk alone
/// can search for the credential behind one.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NodeKey([u8; 32]);

impl NodeKey {
    /// Takes 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What `principal`, together with `subject`, is called on this node.
    #[expect(clippy::missing_panics_doc, reason = "HMAC takes any key")]
    pub fn seal(&self, principal: Principal, subject: &str) -> SealedPrincipal {
        let mut digest = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any key");
        digest.update(&principal.0);
        digest.update(subject.as_bytes());
        SealedPrincipal(hex::encode(&digest.finalize().into_bytes()[..20]))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(not shown)")
    }
}

/// A [`Principal`] in a form that may be kept on disk: equal for equal principals of one node, and
/// of no use elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealedPrincipal(String);

impl SealedPrincipal {
    /// 40 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Principal {
    /// Four bytes of the digest: enough to tell principals apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Principal({})", hex::encode(&self.0[..4]))
    }
}

/// A request to S3 that did not succeed, ready for the user to read.
///
/// Cheap to clone, because one failed fetch answers everybody who waited for it.
#[derive(Debug, Clone, Error)]
#[error("{message}")]
pub struct SourceError {
    kind: FailureKind,
    message: Arc<str>,
    gone_for_good: bool,
}

impl SourceError {
    /// Makes an error; `message` names endpoint, bucket, key or prefix, and the remedy.
    pub fn new(kind: FailureKind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into(), gone_for_good: false }
    }

    /// The same error, of something that listing again will not bring back: a bucket that does not
    /// exist, a version that was deleted.
    #[must_use]
    pub fn of_gone_for_good(self) -> Self {
        Self { gone_for_good: true, ..self }
    }

    /// The same error for an object that was listed: gone since then, it has changed, and listing
    /// again will tell. What is gone for good stays gone.
    #[must_use]
    pub fn stale_if_gone(self) -> Self {
        match self.kind {
            FailureKind::NotFound if !self.gone_for_good => {
                Self { kind: FailureKind::Stale, ..self }
            }
            _ => self,
        }
    }

    /// The kind of this failure.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}

/// Errors of which some go away when the same thing is tried again.
pub trait Transient: fmt::Display {
    /// Whether the same attempt may succeed a moment later.
    fn is_transient(&self) -> bool;
}

impl Transient for SourceError {
    fn is_transient(&self) -> bool {
        matches!(self.kind, FailureKind::Unavailable | FailureKind::Corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{certificate::samples::Pair, volume::VolumeSecrets};

    #[test]
    fn a_principal_is_all_of_its_credential() {
        let here = EndpointId::new("http://a", None);
        let there = EndpointId::new("http://b", None);
        let one = Principal::credential(&here, "id", "secret", None);
        assert_eq!(one, Principal::credential(&here, "id", "secret", None));
        assert_ne!(one, Principal::credential(&here, "id", "other", None));
        assert_ne!(one, Principal::credential(&here, "id", "secret", Some("token")));
        assert_ne!(one, Principal::credential(&there, "id", "secret", None));
        assert_ne!(
            Principal::credential(&here, "a", "bc", None),
            Principal::credential(&here, "ab", "c", None)
        );
    }

    #[test]
    fn who_shows_another_certificate_is_somebody_else() {
        let digest = || {
            let pair = Pair::ecdsa();
            let secrets = [("tls.crt", pair.certificate), ("tls.key", pair.key)];
            let secrets = secrets.map(|(name, value)| (name.to_owned(), value));
            let secrets = VolumeSecrets::parse(secrets.into()).unwrap();
            *secrets.client_certificate.unwrap().digest()
        };
        let (here, one, other) = (EndpointId::new("https://a", None), digest(), digest());
        for principal in [
            Principal::credential(&here, "id", "secret", None),
            Principal::driver(&here),
            Principal::anonymous(&here),
        ] {
            assert_eq!(principal.showing(&one), principal.showing(&one));
            assert_ne!(principal.showing(&one), principal.showing(&other));
            assert_ne!(principal.showing(&one), principal);
        }
        assert_ne!(
            Principal::driver(&here).showing(&one),
            Principal::anonymous(&here).showing(&one)
        );
    }

    #[test]
    fn a_principal_of_a_token_is_its_subject_at_a_service() {
        let here = EndpointId::new("http://a", None);
        let one = WebIdentity { sts: "http://s", role_arn: None, audience: "a", subject: "me" };
        let all = [
            one,
            WebIdentity { sts: "http://t", ..one },
            WebIdentity { role_arn: Some("arn"), ..one },
            WebIdentity { role_arn: Some(""), ..one },
            WebIdentity { audience: "b", ..one },
            WebIdentity { subject: "you", ..one },
        ];
        let of = |exchange| Principal::web_identity(&here, exchange);
        for (index, other) in all.iter().enumerate().skip(1) {
            assert_ne!(of(&one), of(other), "{index}");
        }
        assert_eq!(of(&one), of(&one));
        assert_ne!(of(&one), Principal::web_identity(&EndpointId::new("http://b", None), &one));
    }

    #[test]
    fn no_credential_is_a_principal_of_another_kind() {
        let here = EndpointId::new("http://a", None);
        let exchange =
            WebIdentity { sts: "http://s", role_arn: Some("arn"), audience: "a", subject: "me" };
        let all = [
            Principal::web_identity(&here, &exchange),
            Principal::credential(&here, "http://s", "arn", Some("a")),
            Principal::credential(&here, "", "", None),
            Principal::driver(&here),
            Principal::anonymous(&here),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| one != other), "{index}");
        }
    }

    #[test]
    fn a_sealed_principal_needs_the_key_of_the_node() {
        let endpoint = EndpointId::new("http://a", None);
        let principal = |id| Principal::credential(&endpoint, id, "secret", None);
        let (here, there) = (NodeKey::new([1; 32]), NodeKey::new([2; 32]));
        assert_eq!(here.seal(principal("id"), ""), here.seal(principal("id"), ""));
        assert_ne!(here.seal(principal("id"), ""), here.seal(principal("other"), ""));
        assert_ne!(here.seal(principal("id"), ""), here.seal(principal("id"), "subject"));
        assert_ne!(here.seal(principal("id"), ""), there.seal(principal("id"), ""));
        assert!(!format!("{here:?}").contains('1'));
    }

    #[test]
    fn debug_shows_no_whole_digest() {
        let endpoint = EndpointId::new("http://a", None);
        let text = format!("{:?}", Principal::credential(&endpoint, "id", "secret", None));
        assert_eq!(text.len(), "Principal(00000000)".len());
    }
}
