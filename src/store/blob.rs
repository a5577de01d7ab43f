//! The names of blobs: everything that the index must know, in one file name.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::object::ObjectVersion;

/// A digest of an object version: the key of the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId([u8; 32]);

/// Who owns a file and what its mode is: what an inode holds beside the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits.
    pub mode: u16,
}

/// The name of one variant of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlobName {
    pub(super) id: BlobId,
    /// Content length in bytes.
    pub(super) size: u64,
    /// CRC-64/NVME of the content.
    pub(super) crc: u64,
    pub(super) variant: Variant,
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
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({})", hex::encode(&self.0[..8]))
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, size, crc, variant: Variant { uid, gid, mode } } = self;
        write!(f, "{}-{size}-{crc:016x}-{uid}-{gid}-{mode:04o}", hex::encode(id.0))
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
        let mut id = [0; 32];
        hex::decode_to_slice(next()?, &mut id).map_err(|_| NotABlob)?;
        let size = next()?.parse().map_err(|_| NotABlob)?;
        let crc = u64::from_str_radix(next()?, 16).map_err(|_| NotABlob)?;
        let uid = next()?.parse().map_err(|_| NotABlob)?;
        let gid = next()?.parse().map_err(|_| NotABlob)?;
        let mode = u16::from_str_radix(next()?, 8).map_err(|_| NotABlob)?;
        let name = Self { id: BlobId(id), size, crc, variant: Variant { uid, gid, mode } };
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
        fn names_round_trip(id: [u8; 32], size: u64, crc: u64, uid: u32, gid: u32, mode in 0..512u16) {
            let name = BlobName { id: BlobId(id), size, crc, variant: Variant { uid, gid, mode } };
            prop_assert_eq!(name.to_string().parse::<BlobName>(), Ok(name));
        }

        #[test]
        fn other_names_are_refused(text in "[0-9a-f-]{0,90}") {
            prop_assert!(text.parse::<BlobName>().is_err());
        }
    }
}
