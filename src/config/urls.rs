//! URLs of services, and the patterns by which a policy allows them.
//!
//! Both go through one URL parser, so that a pattern and the URL that it judges are normalised
//! alike (case, punycode, IPv6, default ports). Comparing texts would let `HTTP://MINIO` or
//! `http://minio:80` slip past or be refused for its spelling.

use std::{fmt, str::FromStr};

use thiserror::Error;
use url::Url;

use crate::failure::FailureKind;

/// Parses the URL of a service: `http` or `https`, a host, and perhaps a port.
pub(super) fn service_url(text: &str) -> Result<Url, String> {
    origin(text).filter(|url| !url.host_str().is_some_and(|host| host.contains('*'))).ok_or_else(
        || {
            let example = "\"https://s3.example.com:9000\"";
            format!("{} must be only http(s), host and port, such as {example}", Shown(text))
        },
    )
}

/// Whether the host belongs to AWS, which addresses buckets by host name.
pub fn is_aws(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    ["amazonaws.com", "amazonaws.com.cn"].iter().any(|domain| {
        host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

/// The URL, if it has scheme, host and port only: no user, path, query or fragment.
fn origin(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let anonymous = url.username().is_empty() && url.password().is_none();
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let web = matches!(url.scheme(), "http" | "https") && url.has_host();
    (web && bare && anonymous).then_some(url)
}

/// A rejected URL as a message may quote it: what stands before an `@` may be a password.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains('@') {
            f.write_str("a URL with user information")
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

/// Which URLs a volume may name: scheme, host pattern and port (the scheme's, if none is given).
///
/// `*` stands for any characters within one label of the host, and never for a dot:
/// `https://*.example.com` allows `https://s3.example.com`, but neither `https://example.com` nor
/// `https://a.b.example.com` nor `https://s3.example.com:8443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPattern(Url);

/// The text is not a pattern of URLs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{} must be http(s), a host pattern and perhaps a port, such as \"https://*.example.com\"",
    Shown(.0)
)]
pub struct UrlPatternError(String);

impl UrlPatternError {
    /// Always [`FailureKind::Invalid`].
    pub const fn kind(&self) -> FailureKind {
        FailureKind::Invalid
    }
}

impl UrlPattern {
    /// Whether the pattern spells out one host.
    pub fn is_exact(&self) -> bool {
        self.0.host_str().is_some_and(|host| !host.contains('*'))
    }

    /// Whether scheme, host and port of `url` fit; path, query and user are not looked at.
    pub fn matches(&self, url: &Url) -> bool {
        let (Some(pattern), Some(host)) = (self.0.host_str(), url.host_str()) else { return false };
        self.0.scheme() == url.scheme()
            && self.0.port_or_known_default() == url.port_or_known_default()
            && pattern.split('.').count() == host.split('.').count()
            && pattern.split('.').zip(host.split('.')).all(|(pattern, label)| fits(pattern, label))
    }
}

impl FromStr for UrlPattern {
    type Err = UrlPatternError;

    fn from_str(text: &str) -> Result<Self, UrlPatternError> {
        origin(text).map(Self).ok_or_else(|| UrlPatternError(text.to_owned()))
    }
}

impl fmt::Display for UrlPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

/// Whether one label fits its pattern: the parts between the stars occur in order, the first at the
/// start and the last at the end. Taking each middle part where it first occurs is enough.
fn fits(pattern: &str, label: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = label.strip_prefix(first).filter(|_| !label.is_empty()) else {
        return false;
    };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("https://*.example.com", "https://s3.example.com", true; "one label")]
    #[test_case("https://*.example.com", "https://S3.Example.COM:443/bucket", true; "normalised")]
    #[test_case("https://*.example.com", "https://a.b.example.com", false; "two labels")]
    #[test_case("https://*.example.com", "https://example.com", false; "no label")]
    #[test_case("https://*.example.com", "https://.example.com", false; "empty label")]
    #[test_case("https://*.example.com", "http://s3.example.com", false; "other scheme")]
    #[test_case("https://*.example.com", "https://s3.example.com:8443", false; "other port")]
    #[test_case("https://*.example.com", "https://s3.example.com.evil.org", false; "longer")]
    #[test_case("https://*.example.com", "https://s3.example.com@evil.org", false; "user")]
    #[test_case("http://minio.spark:9000", "http://minio.spark:9000/", true; "exact")]
    #[test_case("http://minio.spark:9000", "http://minio.spark", false; "default port")]
    #[test_case("http://minio:80", "http://minio", true; "port of the scheme")]
    #[test_case("http://minio-*.spark", "http://minio-0.spark", true; "part of a label")]
    #[test_case("http://minio-*.spark", "http://minio.spark", false; "head is missing")]
    #[test_case("http://a*b*c", "http://axxbyyc", true; "two stars")]
    #[test_case("http://a*b*c", "http://axxc", false; "middle is missing")]
    #[test_case("http://ab*ba", "http://aba", false; "head and tail do not overlap")]
    #[test_case("http://[::1]:9000", "http://[0:0::1]:9000", true; "ipv6")]
    #[test_case("http://10.0.0.1", "http://10.0.0.2", false; "ipv4")]
    fn a_pattern_allows_what_it_says(pattern: &str, url: &str, allowed: bool) {
        let pattern: UrlPattern = pattern.parse().unwrap();
        assert_eq!(pattern.matches(&Url::parse(url).unwrap()), allowed);
    }

    #[test_case("*.example.com"; "no scheme")]
    #[test_case("ftp://example.com"; "scheme")]
    #[test_case("https://example.com/path"; "path")]
    #[test_case("https://example.com?x"; "query")]
    #[test_case("https://user@example.com"; "user")]
    #[test_case("https://"; "no host")]
    #[test_case("https://*:*"; "port pattern")]
    fn another_text_is_no_pattern(text: &str) {
        assert_eq!(text.parse::<UrlPattern>(), Err(UrlPatternError(text.to_owned())));
        assert!(service_url(text).is_err());
    }

    #[test]
    fn a_star_anywhere_is_not_exact() {
        let exact = |text: &str| text.parse::<UrlPattern>().unwrap().is_exact();
        assert!(exact("http://minio.spark:9000") && exact("http://127.0.0.1:9000"));
        assert!(!exact("https://*.example.com") && !exact("https://s3-*.example.com"));
    }

    #[test]
    fn a_pattern_prints_as_it_is_written() {
        let pattern: UrlPattern = "http://*.spark:9000".parse().unwrap();
        assert_eq!(pattern.to_string(), "http://*.spark:9000");
    }

    #[test]
    fn a_service_is_one_host() {
        let message = service_url("https://*.example.com").unwrap_err();
        assert!(message.contains("\"https://*.example.com\""), "{message}");
    }

    #[test]
    fn a_password_is_not_quoted() {
        let message = service_url("http://minio:hunter2@minio").unwrap_err();
        assert!(!message.contains("hunter2"), "{message}");
        let error = "http://minio:hunter2@minio".parse::<UrlPattern>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test_case("https://s3.eu-west-1.amazonaws.com", true)]
    #[test_case("https://s3.cn-north-1.amazonaws.com.cn", true; "china")]
    #[test_case("https://evilamazonaws.com", false; "another domain")]
    #[test_case("http://minio.spark:9000", false; "minio")]
    fn aws_is_told_by_its_domain(url: &str, aws: bool) {
        assert_eq!(is_aws(&Url::parse(url).unwrap()), aws);
    }
}
