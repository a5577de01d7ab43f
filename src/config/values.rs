//! From the text of a value to its type, each refusal with an example of what is allowed.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use crate::units::{ByteSize, UnitError, parse_duration};

/// The smallest part of a ranged fetch; below it requests cost more than they carry.
const SMALLEST_PART: ByteSize = ByteSize::from_bytes(64 << 10);

/// More requests than any node can have under way, and far fewer than a semaphore can count.
const MOST_REQUESTS: usize = 10_000;

/// `true` or `false`.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} must be true or false"))
}

/// A whole number, zero included.
pub(super) fn count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} must be a whole number, such as 5"))
}

/// A whole number above zero.
pub(super) fn positive_count(text: &str) -> Result<u64, String> {
    let positive = count(text)?;
    if positive == 0 { Err("0 must be at least 1".to_owned()) } else { Ok(positive) }
}

/// A bound on concurrent requests.
pub(super) fn requests(text: &str) -> Result<usize, String> {
    let requests = count(text)?;
    let allowed = (1..=MOST_REQUESTS).contains(&requests);
    if allowed { Ok(requests) } else { Err(format!("{text} must be from 1 to {MOST_REQUESTS}")) }
}

/// A size above zero.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    at_least(ByteSize::from_bytes(1), text)
}

/// A size that can hold a part of a ranged fetch.
pub(super) fn part_size(text: &str) -> Result<ByteSize, String> {
    at_least(SMALLEST_PART, text)
}

fn at_least(least: ByteSize, text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: UnitError| error.to_string())?;
    if size < least { Err(format!("{text:?} must be at least {least}")) } else { Ok(size) }
}

/// A duration above zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        return Err(format!("{text:?} must be above zero, such as \"5s\""));
    }
    Ok(duration)
}

/// A path from the root.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} must begin with \"/\"")) }
}

/// An address to listen on.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} must be an IP address and a port, such as \"0.0.0.0:9090\"");
    text.parse().map_err(|_| wrong())
}

/// A region's name. It becomes part of signatures and of AWS host names.
pub(super) fn region(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} must be letters, digits, '-' and '_', such as \"eu-central-1\""))
}

/// A name with which the kubelet can register a driver: a domain name of at most 63 characters.
pub(super) fn driver_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !(label.is_empty() || label.starts_with('-') || label.ends_with('-'))
    };
    let letters = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphabetic());
    if letters && text.len() <= 63 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} must be a domain name of at most 63 characters that begins and ends with a \
         letter, such as \"csi.s3view.dev\""
    ))
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("csi.s3view.dev", true)]
    #[test_case("S3view", true; "upper case")]
    #[test_case("a", true; "one letter")]
    #[test_case("csi-2.s3view.dev", true; "digits and dashes within")]
    #[test_case("csi.s3view.dev2", false; "digit at the end")]
    #[test_case("3view.dev", false; "digit at the start")]
    #[test_case("csi..dev", false; "empty label")]
    #[test_case("csi-.dev", false; "dash at the end of a label")]
    #[test_case("csi_s3view.dev", false; "underscore")]
    fn a_driver_name_is_a_domain_name(name: &str, allowed: bool) {
        assert_eq!(driver_name(name).is_ok(), allowed);
    }

    #[test]
    fn a_driver_name_has_at_most_63_characters() {
        assert!(driver_name(&"a".repeat(63)).is_ok());
        assert!(driver_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn limits_are_inclusive() {
        assert_eq!(part_size("64Ki"), Ok(SMALLEST_PART));
        assert!(part_size("65535").unwrap_err().ends_with("must be at least 64Ki"));
        assert_eq!(requests("1"), Ok(1));
        assert!(requests("0").is_err() && requests("10001").is_err());
        assert!(size("0").is_err() && positive_duration("0s").is_err());
    }
}
