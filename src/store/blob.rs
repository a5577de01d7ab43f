//! The names of blobs: everything that the index must know, in one file name.

use std::{fmt, str::FromStr};

use nix::unistd::{getegid, geteuid};
use sha2::{Digest, Sha256};

use crate::object::ObjectVersion;

/// A digest of an object version: the key of the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId([u8; 32]);

/// Who owns a file, what its mode is, and who may have a link to it: what an inode has beside the
/// content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits.
    pub mode: u16,
    /// Whose volumes link it; `None` for any.
    pub sharers: Option<Sharers>,
}

/// Volumes that may link the same files. As good as a secret from others who share: it is a digest,
/// and stands in no place that a pod can read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sharers([u8; 16]);

/// A digest of a blob's content that nobody can forge, unlike its CRC. Only files with [`Sharers`]
/// have one: it tells whether what some of them hold may be copied for others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ContentDigest(pub(super) [u8; 16]);

/// The name of one variant of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlobName {
    pub(super) id: BlobId,
    /// Content length in bytes.
    pub(super) size: u64,
    /// CRC-64/NVME of the content.
    pub(super) crc: u64,
    pub(super) variant: Variant,
    /// There is one if, and only if, the variant has sharers.
    pub(super) digest: Option<ContentDigest>,
}

impl Variant {
    /// That of content which no volume links: only the plugin, whose own it is, reads it, or the
    /// kernel for it.
    pub fn shown_by_none(sharers: Option<Sharers>) -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        Self { uid, gid, mode: 0o444, sharers }
    }
}

impl Sharers {
    /// The volumes of a namespace.
    pub fn of_namespace(name: &str) -> Self {
        Self::of("namespace", name)
    }

    /// One volume alone, by a name that no other has.
    pub fn of_volume(name: &str) -> Self {
        Self::of("volume", name)
    }

    fn of(kind: &str, name: &str) -> Self {
        Self(half(&Sha256::new().chain_update(kind).chain_update([0]).chain_update(name)))
    }

    /// The digest itself.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl ContentDigest {
    /// Of what was hashed.
    pub(super) fn of(hash: &Sha256) -> Self {
        Self(half(hash))
    }
}

/// Half a SHA-256 is as hard to meet by chance or will.
fn half(hash: &Sha256) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.clone().finalize()[..16]);
    half
}

impl fmt::Debug for Sharers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sharers({})", hex::encode(self.0))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentDigest({})", hex::encode(self.0))
    }
}

impl BlobId {
    /// The digest; each field goes in with its length, so that no two versions run together.
    pub fn of(version: &ObjectVersion) -> Self {
        let ObjectVersion { endpoint, bucket, key, etag, size, sse_key } = version;
        let mut digest = Sha256::new();
        for text in [endpoint.as_str(), bucket.as_str(), key.as_str(), etag.as_str()] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        digest.update(size.to_le_bytes());
        if let Some(sse_key) = sse_key {
            digest.update(sse_key.0);
        }
        Self(digest.finalize().into())
    }

    /// The digest itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest from 64 hexadecimal digits.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let mut id = [0; 32];
        hex::decode_to_slice(text, &mut id).ok().map(|()| Self(id))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({})", hex::encode(&self.0[..8]))
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, size, crc, variant, digest } = self;
        let Variant { uid, gid, mode, sharers } = variant;
        write!(f, "{}-{size}-{crc:016x}-{uid}-{gid}-{mode:04o}", hex::encode(id.0))?;
        if let (Some(sharers), Some(digest)) = (sharers, digest) {
            write!(f, "-{}-{}", hex::encode(sharers.0), hex::encode(digest.0))?;
        }
        Ok(())
    }
}

/// A file name that is no blob's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a blob")]
pub(super) struct NotABlob;

impl FromStr for BlobName {
    type Err = NotABlob;

    fn from_str(text: &str) -> Result<Self, NotABlob> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(NotABlob);
        let id = BlobId::from_hex(next()?).ok_or(NotABlob)?;
        let size = next()?.parse().map_err(|_| NotABlob)?;
        let crc = u64::from_str_radix(next()?, 16).map_err(|_| NotABlob)?;
        let uid = next()?.parse().map_err(|_| NotABlob)?;
        let gid = next()?.parse().map_err(|_| NotABlob)?;
        let mode = u16::from_str_radix(next()?, 8).map_err(|_| NotABlob)?;
        let mut half = |next: &str| {
            let mut half = [0; 16];
            hex::decode_to_slice(next, &mut half).map(|()| half).map_err(|_| NotABlob)
        };
        let sharers = parts.next().map(&mut half).transpose()?.map(Sharers);
        let digest = parts.next().map(&mut half).transpose()?.map(ContentDigest);
        let variant = Variant { uid, gid, mode, sharers };
        let name = Self { id, size, crc, variant, digest };
        // One name for one blob: a spelling that we would not write is not ours.
        if name.to_string() == text { Ok(name) } else { Err(NotABlob) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_round_trip(
            (id, size, crc) in any::<([u8; 32], u64, u64)>(),
            (uid, gid, mode) in (any::<u32>(), any::<u32>(), 0..512u16),
            shared in any::<Option<([u8; 16], [u8; 16])>>(),
        ) {
            let (sharers, digest) = shared.unzip();
            let variant = Variant { uid, gid, mode, sharers: sharers.map(Sharers) };
            let digest = digest.map(ContentDigest);
            let name = BlobName { id: BlobId(id), size, crc, variant, digest };
            prop_assert!(name.to_string().len() <= 255, "a file name");
            prop_assert_eq!(name.to_string().parse::<BlobName>(), Ok(name));
        }

        #[test]
        fn other_names_are_refused(text in "[0-9a-f-]{0,90}") {
            prop_assert!(text.parse::<BlobName>().is_err());
        }
    }

    #[test]
    fn a_file_has_sharers_and_a_digest_or_neither() {
        let plain = format!("{}-1-0000000000000002-3-4-0400", "ab".repeat(32));
        let half = "cd".repeat(16);
        let parses = |text: String| text.parse::<BlobName>().is_ok();
        assert!(parses(plain.clone()) && parses(format!("{plain}-{half}-{half}")));
        for tail in ["-", "--", "-x-x", &format!("-{half}"), &format!("-{half}-{half}-{half}")] {
            assert!(!parses(format!("{plain}{tail}")), "{tail}");
        }
    }

    #[test]
    fn no_namespace_is_a_volume() {
        assert_ne!(Sharers::of_namespace("a"), Sharers::of_volume("a"));
        assert_ne!(Sharers::of_namespace("a"), Sharers::of_namespace("b"));
        assert_eq!(Sharers::of_namespace("a"), Sharers::of_namespace("a"));
    }
}
