//! From what S3 answered to what the user should do: one table.

use std::sync::Arc;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use super::handshake;
use crate::{
    failure::{FailureKind, full_message},
    listing::NULL_VERSION,
    source::SourceError,
};

/// What a request was for, as far as it decides what an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Objects as they are now.
    Objects,
    /// One version of an object.
    Version {
        /// Whether another version may come to have the same id.
        is_reused: bool,
    },
    /// The versions of many objects.
    Versions,
    /// Whether the bucket keeps versions.
    Versioning,
}

impl Asked {
    /// What a request for an object, or for this version of it, is for.
    pub(super) fn of(version_id: Option<&Arc<str>>) -> Self {
        match version_id {
            None => Self::Objects,
            Some(id) => Self::Version { is_reused: **id == *NULL_VERSION },
        }
    }

    /// Sharpens a meaning that was found without looking at the request.
    fn meaning(self, status: u16, meaning: Meaning) -> Meaning {
        let kind = match self {
            // S3 answers so if the version is a delete marker: there is nothing to read.
            Self::Version { .. } if status == 405 => FailureKind::NotFound,
            _ => meaning.kind,
        };
        let remedy = match (self, kind) {
            (Self::Version { .. }, FailureKind::NotFound) => GONE,
            (Self::Version { .. }, FailureKind::Denied) => {
                "allow s3:GetObjectVersion on the bucket's objects (and kms:Decrypt for SSE-KMS) \
                 to this identity"
            }
            (Self::Versions, FailureKind::Denied) => {
                "allow s3:ListBucketVersions on the bucket to this identity; asOf needs it"
            }
            (Self::Versioning, FailureKind::Denied) => {
                "allow s3:GetBucketVersioning on the bucket to this identity"
            }
            _ => meaning.remedy,
        };
        Meaning { kind, remedy }
    }
}

const GONE: &str = "the version was deleted (a lifecycle rule may do that), is a delete marker, or \
                    never existed; check versionId or asOf";

/// What an answer means, before it is told in terms of a bucket and key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meaning {
    kind: FailureKind,
    remedy: &'static str,
}

/// The S3 error codes that deserve a remedy of their own. Status decides for all others.
///
/// Source: Amazon S3 API reference, "Error responses"; MinIO and Ceph use the same codes.
const CODES: &[(&[&str], FailureKind, &str)] = &[
    (&["NoSuchBucket"], FailureKind::NotFound, "check bucket and endpoint"),
    (&["NoSuchKey"], FailureKind::NotFound, "check the key; keys are case-sensitive"),
    (&["NoSuchVersion"], FailureKind::NotFound, GONE),
    (
        &["AccessDenied", "AllAccessDisabled", "AccountProblem", "KMS.AccessDeniedException"],
        FailureKind::Denied,
        "allow s3:ListBucket on the bucket and s3:GetObject on its objects (and kms:Decrypt for \
         SSE-KMS) to this identity",
    ),
    (
        &["InvalidAccessKeyId", "UnrecognizedClientException", "InvalidClientTokenId"],
        FailureKind::Unauthenticated,
        "the access key id is unknown to this endpoint; check the Secret and the endpoint",
    ),
    (
        &["SignatureDoesNotMatch"],
        FailureKind::Unauthenticated,
        "the secret key does not belong to the access key id; check the Secret",
    ),
    (
        &["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"],
        FailureKind::Unauthenticated,
        "the session token has expired; put a fresh one into the Secret",
    ),
    (
        &["InvalidToken"],
        FailureKind::Unauthenticated,
        "the session token does not belong to the access key; check the Secret",
    ),
    (
        &["RequestTimeTooSkewed", "RequestExpired"],
        FailureKind::Precondition,
        "the node's clock differs too much from the endpoint's; synchronise it",
    ),
    (
        &["InvalidObjectState"],
        FailureKind::Precondition,
        "the object is archived; restore it or exclude it",
    ),
    (
        &["PreconditionFailed", "InvalidRange"],
        FailureKind::Stale,
        "the object changed while it was read",
    ),
    (
        &[
            "SlowDown",
            "RequestTimeout",
            "ServiceUnavailable",
            "InternalError",
            "XMinioServerNotInitialized",
        ],
        FailureKind::Unavailable,
        "the endpoint is busy or not ready; it will be tried again",
    ),
    (
        &["NotImplemented"],
        FailureKind::Precondition,
        "the endpoint does not offer this request (asOf needs ListObjectVersions)",
    ),
    (&["UserKeyMustBeSpecified"], FailureKind::Invalid, CUSTOMER_KEY),
];

const CUSTOMER_KEY: &str =
    "the object is encrypted with a customer key; set sseCustomerKey in the Secret";

/// Codes by which an endpoint says that the request went to the wrong region.
const WRONG_REGION: &[&str] = &[
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
];

/// Turns a failed call into an error that says what to change.
///
/// `what` names the request's object in full: `endpoint http://..., bucket "b", prefix "p/"`.
pub(super) fn explain<E>(error: &SdkError<E, HttpResponse>, what: &str, asked: Asked) -> SourceError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (status, region) = match error.raw_response() {
        Some(response) => (
            response.status().as_u16(),
            response.headers().get("x-amz-bucket-region").map(str::to_owned),
        ),
        None => return explain_unanswered(error, what),
    };
    if let Some(remedy) = error.raw_response().and_then(handshake::refusal_in_http) {
        return SourceError::new(FailureKind::Precondition, format!("{what}: {remedy}"));
    }
    let code = error.code().unwrap_or_default();
    if (200..300).contains(&status) {
        // Cut off, garbled, or not S3 at all: nothing in it can be believed.
        let chain = quoted(&full_message(error));
        let text = format!("{what}: the endpoint's answer cannot be read ({chain})");
        return SourceError::new(FailureKind::Unavailable, text);
    }
    if WRONG_REGION.contains(&code) || status == 301 {
        return SourceError::new(
            FailureKind::Invalid,
            wrong_region(region.as_deref(), error, what),
        );
    }
    let Meaning { kind, mut remedy } = match (meaning(status, code), code) {
        (meaning, "NoSuchBucket") => meaning,
        (meaning, _) => asked.meaning(status, meaning),
    };
    if code == "InvalidRequest" && speaks_of_encryption(error.message()) {
        remedy = CUSTOMER_KEY;
    }
    let said = match (code, error.message()) {
        ("", _) => format!("status {status}"),
        (code, None | Some("")) => quoted(code),
        (code, Some(text)) => format!("{}: {}", quoted(code), quoted(text)),
    };
    let error = SourceError::new(kind, format!("{what}: S3 answered {said}; {remedy}"));
    let is_final = code == "NoSuchBucket" || asked == (Asked::Version { is_reused: false });
    if is_final { error.of_gone_for_good() } else { error }
}

fn meaning(status: u16, code: &str) -> Meaning {
    let by_code = CODES.iter().find(|(codes, _, _)| codes.contains(&code));
    if let Some((_, kind, remedy)) = by_code {
        return Meaning { kind: *kind, remedy };
    }
    let (kind, remedy) = match status {
        401 => (FailureKind::Unauthenticated, "check the Secret"),
        403 => (FailureKind::Denied, "allow s3:ListBucket and s3:GetObject to this identity"),
        404 => (FailureKind::NotFound, "check bucket, key and endpoint"),
        409 | 412 | 416 => (FailureKind::Stale, "the object changed while it was read"),
        429 | 500..=599 => {
            (FailureKind::Unavailable, "the endpoint is busy or failing; it will be tried again")
        }
        _ => (FailureKind::Invalid, "check endpoint, region and addressing style"),
    };
    Meaning { kind, remedy }
}

/// S3 has no code of its own for a missing customer key, only words.
fn speaks_of_encryption(message: Option<&str>) -> bool {
    let words = ["SSE", "Server Side Encryption"];
    message.is_some_and(|message| words.iter().any(|word| message.contains(word)))
}

fn wrong_region<E: ProvideErrorMetadata>(
    region: Option<&str>,
    error: &SdkError<E, HttpResponse>,
    what: &str,
) -> String {
    let said = error.message().map(quoted).unwrap_or_default();
    let remedy = match region {
        Some(region) => format!("set region to {:?}", printable(region)),
        None => "set region to the bucket's region".to_owned(),
    };
    format!("{what}: the bucket is in another region ({said}); {remedy}")
}

/// Nothing came back: the connection, TLS, a time-out, or a request that could not be made.
pub(super) fn explain_unanswered<E>(error: &SdkError<E, HttpResponse>, what: &str) -> SourceError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let chain = full_message(error);
    let (kind, remedy) = match error {
        SdkError::ConstructionFailure(_) => {
            (FailureKind::Invalid, "check bucket name, endpoint and region")
        }
        SdkError::TimeoutError(_) => (
            FailureKind::Unavailable,
            "the endpoint did not answer in time; it will be tried again",
        ),
        _ => connection_meaning(&chain),
    };
    SourceError::new(kind, format!("{what}: {remedy} ({})", printable(&chain)))
}

/// TLS failures stay until somebody changes a certificate; everything else may pass.
///
/// Decided by text, because the TLS library's error types are not in the SDK's public interface.
fn connection_meaning(chain: &str) -> (FailureKind, &'static str) {
    let lower = chain.to_lowercase();
    if let Some(remedy) = handshake::refusal(chain) {
        (FailureKind::Precondition, remedy)
    } else if lower.contains("certificate") || lower.contains("unknownissuer") {
        (
            FailureKind::Precondition,
            "the endpoint's certificate is not trusted; set caBundle for the endpoint or ca.crt \
             in the Secret",
        )
    } else if lower.contains("invalidcontenttype") || lower.contains("corrupt message") {
        (FailureKind::Precondition, "the endpoint does not speak TLS; use http:// in its URL")
    } else if lower.contains("too many open files") {
        (
            FailureKind::Unavailable,
            "the node plugin has no file descriptor left for a connection; raise its limit (ulimit \
             -n, LimitNOFILE), or lower fetch.requests",
        )
    } else if lower.contains("dns error") || lower.contains("failed to lookup") {
        (
            FailureKind::Unavailable,
            "the endpoint's host name cannot be resolved; check its URL and the node's DNS",
        )
    } else {
        (
            FailureKind::Unavailable,
            "the endpoint cannot be reached; check its URL, and what lies between: proxy, firewall, \
             network policy",
        )
    }
}

/// The longest run of characters of a token or key that a service's words may have, in bytes.
const LONGEST_RUN: usize = 31;

/// What a service says, as a message may quote it: printable, and without anything that may be a
/// secret. Some services repeat what they were sent, signature, session token and customer key
/// included; whatever looks like one is left out.
pub(super) fn quoted(text: &str) -> String {
    let is_of_run = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-');
    let text = printable(text);
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(begin) = rest.find(is_of_run) {
        let (before, run) = rest.split_at(begin);
        let end = run.find(|c| !is_of_run(c)).unwrap_or(run.len());
        shown.push_str(before);
        shown.push_str(if end > LONGEST_RUN { "(not shown)" } else { &run[..end] });
        rest = &run[end..];
    }
    shown.push_str(rest);
    shown
}

/// Server text in a message: one line, printable, bounded.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(404, "NoSuchBucket", FailureKind::NotFound)]
    #[test_case(404, "NoSuchKey", FailureKind::NotFound)]
    #[test_case(404, "", FailureKind::NotFound; "a HEAD has no code")]
    #[test_case(403, "AccessDenied", FailureKind::Denied)]
    #[test_case(403, "", FailureKind::Denied; "bare 403")]
    #[test_case(403, "InvalidAccessKeyId", FailureKind::Unauthenticated)]
    #[test_case(403, "SignatureDoesNotMatch", FailureKind::Unauthenticated)]
    #[test_case(400, "ExpiredToken", FailureKind::Unauthenticated)]
    #[test_case(403, "RequestTimeTooSkewed", FailureKind::Precondition)]
    #[test_case(403, "InvalidObjectState", FailureKind::Precondition)]
    #[test_case(412, "PreconditionFailed", FailureKind::Stale)]
    #[test_case(416, "InvalidRange", FailureKind::Stale)]
    #[test_case(503, "SlowDown", FailureKind::Unavailable)]
    #[test_case(500, "", FailureKind::Unavailable; "bare 500")]
    #[test_case(429, "", FailureKind::Unavailable; "too many requests")]
    #[test_case(400, "Whatever", FailureKind::Invalid)]
    fn answers_have_a_meaning(status: u16, code: &str, kind: FailureKind) {
        assert_eq!(meaning(status, code).kind, kind);
    }

    #[test_case(Asked::Objects, 403, "AccessDenied", "s3:ListBucket "; "objects")]
    #[test_case(Asked::Version { is_reused: false }, 403, "", "s3:GetObjectVersion"; "a version")]
    #[test_case(Asked::Versions, 403, "AccessDenied", "s3:ListBucketVersions"; "versions")]
    #[test_case(Asked::Versioning, 403, "", "s3:GetBucketVersioning"; "versioning")]
    #[test_case(Asked::Version { is_reused: true }, 405, "", "was deleted"; "a delete marker")]
    #[test_case(Asked::Version { is_reused: false }, 404, "NoSuchKey", "was deleted"; "gone")]
    fn the_remedy_fits_the_request(asked: Asked, status: u16, code: &str, remedy: &str) {
        let meaning = asked.meaning(status, meaning(status, code));
        assert!(meaning.remedy.contains(remedy), "{meaning:?}");
    }

    #[test_case("io error: invalid peer certificate: UnknownIssuer", FailureKind::Precondition)]
    #[test_case("dispatch failure: dns error: failed to lookup", FailureKind::Unavailable)]
    #[test_case("tcp connect error: Connection refused", FailureKind::Unavailable)]
    #[test_case("tcp open error: Too many open files (os error 24)", FailureKind::Unavailable)]
    #[test_case("received fatal alert: InternalError", FailureKind::Unavailable)]
    fn connection_failures_have_a_meaning(chain: &str, kind: FailureKind) {
        let (meant, text) = connection_meaning(chain);
        assert_eq!(meant, kind);
        assert!(text.contains("; "), "{text} lacks a remedy");
    }

    #[test]
    fn a_secret_that_is_sent_back_is_not_quoted() {
        let key = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=";
        let text = format!("header x-amz-key: {key}, and Signature={}; see RFC", "0af".repeat(21));
        let shown = quoted(&text);
        assert_eq!(shown, "header x-amz-key: (not shown), and (not shown); see RFC");
        assert_eq!(
            quoted("The bucket kafka-certs-bucket is gone"),
            "The bucket kafka-certs-bucket is gone"
        );
        assert!(!quoted(&"x".repeat(400)).contains("xx"));
    }

    #[test]
    fn server_text_cannot_break_a_line() {
        assert_eq!(printable("a\nb\u{1b}[1m"), "ab[1m");
    }
}
