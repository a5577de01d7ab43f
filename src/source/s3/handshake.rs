//! How an endpoint says that it does not let a client in by its certificate: what its words mean, and
//! which keys of the Secret to change.

use aws_sdk_s3::config::http::HttpResponse;

const MISSING: &str = "the endpoint wants a client certificate (mutual TLS); put tls.crt and tls.key \
                       into the Secret";
const REFUSED: &str = "the endpoint does not accept the client certificate, or misses one; check \
                       tls.crt and tls.key in the Secret";

/// The alerts of TLS (RFC 8446, section 6.2), as the TLS library names them. Older protocols and
/// servers do not tell a certificate that is missing from one that they do not like.
const ALERTS: &[(&[&str], &str)] = &[
    (&["CertificateRequired", "NoCertificate"], MISSING),
    (
        &["CertificateExpired"],
        "the client certificate has expired, the endpoint says; renew tls.crt and tls.key in the \
         Secret, or check the endpoint's clock",
    ),
    (
        &["CertificateRevoked"],
        "the client certificate was revoked, the endpoint says; replace tls.crt and tls.key in the \
         Secret",
    ),
    (
        &["UnknownCA"],
        "the endpoint does not know the CA of the client certificate; put a pair of a CA that it \
         accepts into tls.crt and tls.key of the Secret, with the certificates in between",
    ),
    (
        &[
            "BadCertificate",
            "UnsupportedCertificate",
            "CertificateUnknown",
            "AccessDenied",
            "DecryptError",
        ],
        REFUSED,
    ),
    (
        &["HandshakeFailure"],
        "the endpoint refuses the TLS connection; it may want a client certificate (tls.crt and \
         tls.key in the Secret), or share no protocol or cipher suite with the driver",
    ),
];

/// What nginx answers: it goes through with the handshake, whatever it was shown.
const ANSWERS: &[(&str, &str)] =
    &[("No required SSL certificate was sent", MISSING), ("The SSL certificate error", REFUSED)];

/// What to do about an alert that ended a connection; `chain` is the error's text.
///
/// By text, because the TLS library's error types are not in the SDK's public interface.
pub(super) fn refusal(chain: &str) -> Option<&'static str> {
    let (_, alert) = chain.split_once("received fatal alert: ")?;
    let is_meant = |names: &[&str]| names.iter().any(|name| alert.starts_with(name));
    ALERTS.iter().find(|(names, _)| is_meant(names)).map(|(_, remedy)| *remedy)
}

/// What to do about an answer by a gateway before the endpoint.
pub(super) fn refusal_in_http(response: &HttpResponse) -> Option<&'static str> {
    if response.status().as_u16() != 400 {
        return None;
    }
    let body = String::from_utf8_lossy(response.body().bytes()?);
    ANSWERS.iter().find(|(words, _)| body.contains(words)).map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::body::SdkBody;
    use test_case::test_case;

    use super::*;

    #[test_case("CertificateRequired", "wants a client certificate")]
    #[test_case("CertificateExpired", "has expired")]
    #[test_case("CertificateRevoked", "was revoked")]
    #[test_case("UnknownCA", "does not know the CA")]
    #[test_case("BadCertificate", "or misses one")]
    #[test_case("CertificateUnknown", "does not accept the client certificate")]
    #[test_case("HandshakeFailure", "may want a client certificate")]
    fn who_is_refused_is_told_which_keys_to_change(alert: &str, text: &str) {
        let remedy = refusal(&format!("connection error: received fatal alert: {alert}: more"));
        let remedy = remedy.unwrap();
        assert!(remedy.contains(text) && remedy.contains("tls.crt and tls.key"), "{remedy}");
    }

    #[test_case("received fatal alert: InternalError")]
    #[test_case("invalid peer certificate: UnknownIssuer")]
    fn other_failures_are_no_refusal(chain: &str) {
        assert_eq!(refusal(chain), None);
    }

    #[test_case(400, "No required SSL certificate was sent", Some(MISSING); "none")]
    #[test_case(400, "The SSL certificate error", Some(REFUSED); "a bad one")]
    #[test_case(400, "Request Header Or Cookie Too Large", None; "another reason")]
    #[test_case(403, "The SSL certificate error", None; "another status")]
    fn nginx_refuses_in_http(status: u16, title: &str, remedy: Option<&str>) {
        let page = format!("<html><head><title>400 {title}</title></head></html>");
        let response = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(page));
        assert_eq!(refusal_in_http(&response), remedy);
    }
}
