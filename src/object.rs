//! What S3 holds, in types that cannot be wrong: buckets, prefixes, keys, ETags, object versions.
//!
//! [`ObjectVersion`] is the identity of content on a node, and so the only key of the store. A
//! version id is not part of it (`null` is reused by unversioned buckets) and neither is
//! Last-Modified (one second is too coarse to tell two uploads apart).

use std::{fmt, sync::Arc, time::SystemTime};

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A bucket name that S3 would accept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(Arc<str>);

/// The keys below a directory-like prefix: empty (the whole bucket) or ending in `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Prefix(Arc<str>);

/// An object key: 1 to 1024 bytes of UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// An entity tag without its quotes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ETag(Arc<str>);

/// Which S3 service: its normalised URL and a digest of the CA bundle that vouches for it.
///
/// Two configured names for one URL and CA are one endpoint; one host name behind another CA is
/// another endpoint, since nothing says that the same server answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(Arc<str>);

/// A digest of an SSE-C key; tells keys apart without being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SseKeyDigest(pub [u8; 32]);

/// The identity of content: equal object versions have equal bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectVersion {
    /// The service that holds the object.
    pub endpoint: EndpointId,
    /// The bucket at that service.
    pub bucket: Bucket,
    /// The key in that bucket.
    pub key: Key,
    /// The entity tag that the service gave this content.
    pub etag: ETag,
    /// The content's length in bytes.
    pub size: u64,
    /// The customer key it is encrypted with, if any.
    pub sse_key: Option<SseKeyDigest>,
}

/// An object as a listing or a HEAD request described it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What its content is.
    pub version: ObjectVersion,
    /// Set only when the user asked for a version: it then selects what to fetch.
    pub version_id: Option<Arc<str>>,
    /// When the service says that it was written; becomes the file's mtime.
    pub last_modified: SystemTime,
}

/// Why a text is no bucket, prefix or key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Not a bucket name by the S3 naming rules.
    #[error(
        "{name:?} must be a bucket name: 3 to 63 characters of a-z, 0-9, '.' and '-', starting \
         and ending with a letter or digit, without '..', not an IP address, and not the name of an \
         access point or directory bucket (such as ...--x-s3)"
    )]
    Bucket {
        /// The rejected name.
        name: String,
    },
    /// Not a key.
    #[error("must be an object key of 1 to 1024 bytes, and is {length} bytes long")]
    Key {
        /// Its length in bytes.
        length: usize,
    },
    /// Not a prefix.
    #[error("must be a prefix of at most 1024 bytes, and is {length} bytes long")]
    Prefix {
        /// Its length in bytes.
        length: usize,
    },
}

const MAX_KEY: usize = 1024;

/// Endings of names that stand for other things than general purpose buckets (access points,
/// directory buckets, tables), which are read in other ways.
const RESERVED: [&str; 7] =
    ["-s3alias", "--ol-s3", "--op-s3", "--x-s3", "--xa-s3", "--table-s3", ".mrap"];

impl Bucket {
    /// Checks a name against the S3 rules for general purpose buckets.
    ///
    /// # Errors
    /// [`NameError::Bucket`]. Source: Amazon S3 user guide, "General purpose bucket naming rules".
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = name.as_bytes();
        let good = (3..=63).contains(&bytes.len())
            && bytes.iter().all(|&b| edge(b) || b == b'.' || b == b'-')
            && bytes.first().is_some_and(|&b| edge(b))
            && bytes.last().is_some_and(|&b| edge(b))
            && !name.contains("..")
            && !RESERVED.iter().any(|suffix| name.ends_with(suffix))
            && name.parse::<std::net::Ipv4Addr>().is_err();
        if good { Ok(Self(name.into())) } else { Err(NameError::Bucket { name: name.into() }) }
    }
}

impl Prefix {
    /// Makes a directory-like prefix: `certs` and `certs/` are the same; empty is the whole bucket.
    ///
    /// # Errors
    /// [`NameError::Prefix`] if it could not be the beginning of a key.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.ends_with('/') {
            Self::checked(text.into())
        } else {
            Self::checked(format!("{text}/"))
        }
    }

    fn checked(text: String) -> Result<Self, NameError> {
        if text.len() > MAX_KEY {
            return Err(NameError::Prefix { length: text.len() });
        }
        Ok(Self(text.into()))
    }

    /// What remains of a key below this prefix; `None` if the key is elsewhere.
    pub fn strip<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&*self.0)
    }
}

impl Key {
    /// Checks the length of a key.
    ///
    /// # Errors
    /// [`NameError::Key`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if (1..=MAX_KEY).contains(&text.len()) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Key { length: text.len() })
        }
    }

    /// The part after the last `/`: the natural file name. Empty for a directory marker.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl ETag {
    /// Takes an entity tag as HTTP or a listing writes it, with or without quotes.
    pub fn new(text: &str) -> Self {
        Self(text.trim_matches('"').into())
    }

    /// The MD5 that the tag may be: 32 hexadecimal digits, no part count.
    ///
    /// Whether it really is one depends on the object's encryption, which only a response tells.
    pub fn md5(&self) -> Option<[u8; 16]> {
        let mut digest = [0; 16];
        hex::decode_to_slice(&*self.0, &mut digest).ok().map(|()| digest)
    }

    /// The value of an `If-Match` header.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl EndpointId {
    /// Makes the identity from a URL in its normal form and the CA bundle's PEM text, if any.
    pub fn new(normal_url: &str, ca_bundle: Option<&[u8]>) -> Self {
        let url = normal_url.trim_end_matches('/');
        match ca_bundle {
            None => Self(url.into()),
            Some(pem) => Self(format!("{url}#{}", hex::encode(Sha256::digest(pem))).into()),
        }
    }

    /// The identity of which this is the text, as another process of the node had it.
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// The URL alone, for people.
    pub fn url(&self) -> &str {
        self.0.split('#').next().unwrap_or_default()
    }
}

macro_rules! text_access {
    ($($name:ident),*) => {$(
        impl $name {
            /// The text as S3 knows it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
text_access!(Bucket, Prefix, Key, ETag, EndpointId);

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("kafka-certs-bucket", true)]
    #[test_case("a.b.c", true)]
    #[test_case("ab", false; "too short")]
    #[test_case("Upper", false; "upper case")]
    #[test_case("-ab", false; "leading dash")]
    #[test_case("ab-", false; "trailing dash")]
    #[test_case("a..b", false; "two dots")]
    #[test_case("192.168.0.1", false; "an address")]
    #[test_case("a_b_c", false; "underscore")]
    #[test_case("data--use1-az4--x-s3", false; "a directory bucket")]
    #[test_case("data-x-s3", true; "nearly a directory bucket")]
    fn bucket_names_follow_the_s3_rules(name: &str, good: bool) {
        assert_eq!(Bucket::parse(name).is_ok(), good);
    }

    #[test]
    fn a_prefix_is_a_directory_with_or_without_its_slash() {
        let (bare, slash) = (Prefix::parse("certs").unwrap(), Prefix::parse("certs/").unwrap());
        assert_eq!(bare, slash);
        assert_eq!(bare.strip("certs/a"), Some("a"));
        assert_eq!(bare.strip("certs-old/a"), None);
        assert_eq!(Prefix::parse("").unwrap().strip("x/y"), Some("x/y"));
    }

    #[test]
    fn only_a_plain_etag_can_be_an_md5() {
        assert!(ETag::new("\"d41d8cd98f00b204e9800998ecf8427e\"").md5().is_some());
        assert!(ETag::new("d41d8cd98f00b204e9800998ecf8427e-2").md5().is_none());
        assert_eq!(ETag::new("\"x\"").quoted(), "\"x\"");
    }

    #[test]
    fn another_ca_is_another_endpoint() {
        let plain = EndpointId::new("https://minio:9000/", None);
        let private = EndpointId::new("https://minio:9000", Some(b"pem"));
        assert_ne!(plain, private);
        assert_eq!(plain.url(), private.url());
    }
}
