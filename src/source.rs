//! Reading S3: who asks, what can go wrong, and (in [`s3`]) the requests themselves.
//!
//! Nothing above [`s3`] knows the AWS SDK: it sees objects, bodies and [`SourceError`]s.

pub mod s3;

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{failure::FailureKind, object::EndpointId};

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
        let mut digest = Sha256::new();
        let parts = [endpoint.as_str(), access_key_id, secret_access_key];
        for part in parts.into_iter().chain(session_token) {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
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
    fn debug_shows_no_whole_digest() {
        let endpoint = EndpointId::new("http://a", None);
        let text = format!("{:?}", Principal::credential(&endpoint, "id", "secret", None));
        assert_eq!(text.len(), "Principal(00000000)".len());
    }
}
