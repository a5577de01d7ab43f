//! The exchange of a pod's token for credentials: `AssumeRoleWithWebIdentity`.
//!
//! One [`Exchange`] is one principal at one token service, for all pods that share a service
//! account. It keeps the newest token that the kubelet has brought for any of them.
//!
//! Source: AWS STS API reference, `API_AssumeRoleWithWebIdentity`; MinIO and Ceph speak the same
//! dialect at their S3 endpoints, MinIO with an optional role.

use std::{fmt, sync::Arc, time::SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_s3::{
    config::{BehaviorVersion, Region, SharedHttpClient, http::HttpResponse, retry::RetryConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use parking_lot::Mutex;
use url::Url;

use super::{
    endpoint::timeouts,
    error::{explain_unanswered, printable, quoted},
    handshake,
};
use crate::{
    config::Timeouts,
    failure::FailureKind,
    source::{SourceError, Transient, WebIdentity},
    telemetry::metrics::Metrics,
    volume::ServiceToken,
};

/// The name of the request, as AWS and the metrics have it.
const OPERATION: &str = "AssumeRoleWithWebIdentity";

/// The longest name of a session.
const MAX_SESSION: usize = 64;

/// A token service, and the role that it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sts {
    pub(super) url: Url,
    pub(super) region: String,
    pub(super) role_arn: Option<String>,
}

/// The exchange of one principal's tokens.
pub(super) struct Exchange {
    sdk: aws_sdk_sts::Client,
    role_arn: Option<String>,
    what: String,
    token: Mutex<Arc<ServiceToken>>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Sts {
    /// What a token is exchanged with here.
    pub(super) fn identity<'a>(&'a self, token: &'a ServiceToken) -> WebIdentity<'a> {
        WebIdentity {
            sts: self.url.as_str(),
            role_arn: self.role_arn.as_deref(),
            audience: &token.audience,
            subject: &token.subject,
        }
    }
}

impl Exchange {
    pub(super) fn new(
        sts: &Sts,
        http: SharedHttpClient,
        limits: &Timeouts,
        token: &ServiceToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(sts.region.clone()))
            .endpoint_url(sts.url.as_str())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts(limits));
        let role = match &sts.role_arn {
            Some(role) => format!(", role {:?}", printable(role)),
            None => String::new(),
        };
        let what = format!(
            "STS {}{role}, audience {:?}, subject {:?}",
            sts.url,
            printable(&token.audience),
            printable(&token.subject)
        );
        Self {
            sdk: aws_sdk_sts::Client::from_conf(config.build()),
            role_arn: sts.role_arn.clone(),
            what,
            token: Mutex::new(Arc::new(token.clone())),
            metrics,
        }
    }

    /// The service, role and subject, for messages.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Takes over a token of the same principal, unless it expires before the known one.
    pub(super) fn offer(&self, token: &ServiceToken) {
        let mut known = self.token.lock();
        if known.expires_at <= token.expires_at && known.expose() != token.expose() {
            *known = Arc::new(token.clone());
        }
    }

    /// Exchanges the newest token.
    ///
    /// # Errors
    /// `Unauthenticated` if it has expired; else what the service answers.
    pub(super) async fn credentials(&self) -> Result<Credentials, SourceError> {
        let token = Arc::clone(&self.token.lock());
        if token.is_expired() {
            return Err(expired(&token));
        }
        self.metrics.s3_requests.with_label_values(&[OPERATION]).inc();
        let exchanged = self.exchange(&token).await;
        exchanged.inspect_err(|error| {
            self.metrics.s3_errors.with_label_values(&[OPERATION, error.kind().as_str()]).inc();
        })
    }

    async fn exchange(&self, token: &ServiceToken) -> Result<Credentials, SourceError> {
        let request = self
            .sdk
            .assume_role_with_web_identity()
            .set_role_arn(self.role_arn.clone())
            .role_session_name(session_name(&token.subject))
            .web_identity_token(token.expose());
        let answer = request.send().await.map_err(|error| explain(&error, &self.what, token))?;
        let unusable = || {
            let text = format!("{}: the answer holds no credentials", self.what);
            SourceError::new(FailureKind::Unavailable, text)
        };
        let given = answer.credentials.ok_or_else(unusable)?;
        let expires_at = SystemTime::try_from(given.expiration).map_err(|_| unusable())?;
        if given.access_key_id.is_empty() || given.secret_access_key.is_empty() {
            return Err(unusable());
        }
        tracing::debug!(what = self.what, "a token was exchanged for credentials");
        Ok(Credentials::new(
            given.access_key_id,
            given.secret_access_key,
            Some(given.session_token),
            Some(expires_at),
            "token exchange",
        ))
    }
}

/// The error for a token that does not count any more.
pub(super) fn expired(token: &ServiceToken) -> SourceError {
    let text = format!(
        "the service account token for audience {:?} expired at {}, and the kubelet has brought no \
         newer one; check requiresRepublish of the CSIDriver and the node's clock",
        printable(&token.audience),
        token.expires_at
    );
    SourceError::new(FailureKind::Unauthenticated, text)
}

/// A name for the session in the service's log: the pod's namespace and service account.
fn session_name(subject: &str) -> String {
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '=' | ',' | '.' | '@' | '-');
    let subject = subject.strip_prefix("system:serviceaccount:").unwrap_or(subject);
    let name = subject.chars().map(|c| if allowed(c) { c } else { '-' });
    "s3view-".chars().chain(name).take(MAX_SESSION).collect()
}

const NOT_ALLOWED: &str = "check the role, and that its trust policy allows issuer, audience and \
                           subject of the token";

/// What the answers of token services mean. AWS, MinIO and Ceph have codes of their own.
const CODES: &[(&[&str], FailureKind, &str)] = &[
    (
        &["ExpiredToken", "ExpiredTokenException"],
        FailureKind::Unauthenticated,
        "the token has expired; check the node's clock and requiresRepublish of the CSIDriver",
    ),
    (
        &["InvalidIdentityToken", "InvalidParameterValue", "InvalidClientTokenId", "InvalidToken"],
        FailureKind::Unauthenticated,
        "the service does not accept the token; check that it knows the cluster's issuer and this \
         audience",
    ),
    (
        &["AccessDenied", "AccessDeniedException", "IDPRejectedClaim"],
        FailureKind::Denied,
        NOT_ALLOWED,
    ),
    (&["NoSuchEntity", "NoSuchRole"], FailureKind::Denied, "there is no such role; check roleArn"),
    (
        &["ValidationError", "MissingParameter", "MissingAuthenticationToken"],
        FailureKind::Invalid,
        "check roleArn and stsEndpoint; AWS and Ceph need a role",
    ),
    (
        &["RegionDisabledException"],
        FailureKind::Precondition,
        "switch the region on for STS in the account, or set another sts.url",
    ),
    (
        &["IDPCommunicationError", "STSNotInitialized", "ServerNotInitialized", "NotInitialized"],
        FailureKind::Unavailable,
        "the service cannot verify tokens now; it will be tried again",
    ),
];

fn explain<E>(error: &SdkError<E, HttpResponse>, what: &str, token: &ServiceToken) -> SourceError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let Some(response) = error.raw_response() else { return explain_unanswered(error, what) };
    if let Some(remedy) = handshake::refusal_in_http(response) {
        return SourceError::new(FailureKind::Precondition, format!("{what}: {remedy}"));
    }
    let status = response.status().as_u16();
    let code = error.code().unwrap_or_default();
    let (kind, remedy) = meaning(status, code);
    let said = match (code, error.message()) {
        ("", _) => format!("status {status}"),
        // A service that quotes the token must not bring it into a log.
        (code, Some(text)) if !text.is_empty() && !text.contains(token.expose()) => {
            format!("{}: {}", quoted(code), quoted(text))
        }
        (code, _) => quoted(code),
    };
    let error = SourceError::new(kind, format!("{what}: the service answered {said}; {remedy}"));
    debug_assert!(!error.is_transient() || kind == FailureKind::Unavailable);
    error
}

fn meaning(status: u16, code: &str) -> (FailureKind, &'static str) {
    let known = CODES.iter().find(|(codes, ..)| codes.contains(&code));
    if let Some((_, kind, remedy)) = known {
        return (*kind, remedy);
    }
    match status {
        401 => (FailureKind::Unauthenticated, "check audience and issuer of the token"),
        // Ceph says so whatever it is that it does not like.
        403 => (FailureKind::Denied, NOT_ALLOWED),
        429 | 500..=599 => {
            (FailureKind::Unavailable, "the service is busy or failing; it will be tried again")
        }
        200..=299 => (FailureKind::Unavailable, "its answer cannot be read"),
        _ => (
            FailureKind::Invalid,
            "check stsEndpoint (sts.url of the endpoint): it may be no token service",
        ),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(403, "AccessDenied", FailureKind::Denied; "aws: trust policy")]
    #[test_case(400, "InvalidIdentityToken", FailureKind::Unauthenticated; "aws: bad token")]
    #[test_case(400, "ExpiredTokenException", FailureKind::Unauthenticated; "aws: expired")]
    #[test_case(403, "IDPRejectedClaim", FailureKind::Denied; "aws: rejected")]
    #[test_case(400, "IDPCommunicationError", FailureKind::Unavailable; "aws: issuer is down")]
    #[test_case(400, "InvalidParameterValue", FailureKind::Unauthenticated; "minio: bad token")]
    #[test_case(400, "ValidationError", FailureKind::Invalid; "aws: no role")]
    #[test_case(503, "", FailureKind::Unavailable; "down")]
    #[test_case(404, "", FailureKind::Invalid; "no token service")]
    #[test_case(401, "", FailureKind::Unauthenticated; "bare 401")]
    #[test_case(200, "", FailureKind::Unavailable; "garbage")]
    fn answers_have_a_meaning(status: u16, code: &str, kind: FailureKind) {
        assert_eq!(meaning(status, code).0, kind);
    }

    #[test_case("system:serviceaccount:spark:driver", "s3view-spark-driver")]
    #[test_case("a b/\u{e9}", "s3view-a-b--"; "what no session may have")]
    fn a_session_names_the_service_account(subject: &str, name: &str) {
        assert_eq!(session_name(subject), name);
    }

    #[test]
    fn a_session_name_is_short_enough() {
        assert_eq!(session_name(&"x".repeat(500)).len(), MAX_SESSION);
    }
}
