//! What the files of one source have in common.

use std::sync::Arc;

use crate::object::{Bucket, EndpointId, ObjectVersion, SseKeyDigest};

/// Where files of one source come from: key = `key_head` + path without its first `path_skip` bytes.
///
/// A key is mostly its path with another beginning, so neither a table nor a file need hold it for
/// each of a million files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The service.
    pub endpoint: EndpointId,
    /// The bucket at that service.
    pub bucket: Bucket,
    /// The customer key of all of them, if any.
    pub sse_key: Option<SseKeyDigest>,
    /// What keys have before the part that paths have as well.
    pub key_head: Arc<str>,
    /// What paths have before that part, in bytes.
    pub path_skip: usize,
}

impl Origin {
    /// The origin of what stands at `path`.
    pub fn of(path: &str, version: &ObjectVersion) -> Self {
        let key = version.key.as_str();
        let common = path.bytes().rev().zip(key.bytes().rev()).take_while(|(a, b)| a == b).count();
        // Equal bytes need not begin with a whole character.
        let whole = |length: &usize| key.is_char_boundary(key.len() - length);
        let common = (0..=common).rev().find(whole).unwrap_or(0);
        Self {
            endpoint: version.endpoint.clone(),
            bucket: version.bucket.clone(),
            sse_key: version.sse_key,
            key_head: Arc::from(&key[..key.len() - common]),
            path_skip: path.len() - common,
        }
    }

    /// Whether [`Origin::of`] would give this one. May say no where it would; it is quick.
    pub(super) fn is_of(&self, path: &str, version: &ObjectVersion) -> bool {
        let key = version.key.as_str().as_bytes();
        let (skipped, below) = path.as_bytes().split_at_checked(self.path_skip).unwrap_or_default();
        // Else more would be in common.
        let is_longest = skipped.is_empty() || skipped.last() != self.key_head.as_bytes().last();
        is_longest
            && path.is_char_boundary(self.path_skip)
            && key.strip_prefix(self.key_head.as_bytes()) == Some(below)
            && self.endpoint == version.endpoint
            && self.bucket == version.bucket
            && self.sse_key == version.sse_key
    }

    /// The key of what stands at `path`; `None` for a path that is not of this origin.
    pub fn key(&self, path: &str) -> Option<String> {
        path.get(self.path_skip..).map(|below| format!("{}{below}", self.key_head))
    }
}
