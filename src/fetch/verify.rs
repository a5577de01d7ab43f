//! Telling whether bytes are the object's: its ETag where that is an MD5, its checksum where the
//! service keeps one, and our own CRC-64 over everything, which names the blob.
//!
//! CRCs of parts combine, so parts may arrive in any order. MD5 and SHA-256 do not: [`InOrder`]
//! reads the file behind the parts, in order, while later ones are still under way.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::{
    object::ETag,
    source::s3::{Checksum, ChecksumAlgorithm},
};

/// The CRCs of one part, or of a whole object.
#[derive(Debug)]
pub(super) struct Verifier {
    own: Crc,
    server: Option<Crc>,
}

impl Verifier {
    /// Starts a part of an object that the service keeps `checksum` of.
    pub(super) fn new(checksum: Option<&Checksum>) -> Self {
        let server = match checksum.map(|checksum| checksum.algorithm) {
            Some(ChecksumAlgorithm::Crc32) => Some(Crc::new(CrcAlgorithm::Crc32IsoHdlc)),
            Some(ChecksumAlgorithm::Crc32c) => Some(Crc::new(CrcAlgorithm::Crc32Iscsi)),
            None | Some(ChecksumAlgorithm::Crc64Nvme | ChecksumAlgorithm::Sha256) => None,
        };
        Self { own: Crc::new(CrcAlgorithm::Crc64Nvme), server }
    }

    /// Takes the next bytes of the part.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.own.update(bytes);
        if let Some(server) = &mut self.server {
            server.update(bytes);
        }
    }

    /// Appends the part that follows.
    pub(super) fn append(&mut self, next: &Self) {
        self.own.combine(&next.own);
        if let (Some(server), Some(next)) = (&mut self.server, &next.server) {
            server.combine(next);
        }
    }

    /// Compares with the service's checksum, as far as a CRC can; returns our own CRC.
    pub(super) fn finish(self, checksum: Option<&Checksum>) -> Result<u64, String> {
        let own = self.own.finalize();
        let expected = checksum.map(|checksum| checksum.value.as_slice());
        let computed = match (checksum.map(|checksum| checksum.algorithm), self.server) {
            (Some(ChecksumAlgorithm::Crc64Nvme), _) => own.to_be_bytes().to_vec(),
            (Some(_), Some(server)) => server.finalize().to_be_bytes()[4..].to_vec(),
            _ => return Ok(own),
        };
        if expected == Some(&computed) { Ok(own) } else { Err(checksum_mismatch()) }
    }

    /// Verifies an object that is in memory. (Its checksum header was verified by the SDK as the
    /// bytes streamed.) Returns our own CRC.
    pub(super) fn whole(chunks: &[Bytes], md5_etag: Option<&ETag>) -> Result<u64, String> {
        let mut own = Crc::new(CrcAlgorithm::Crc64Nvme);
        for chunk in chunks {
            own.update(chunk);
        }
        if let Some(expected) = md5_etag.and_then(ETag::md5) {
            let mut md5 = Md5::new();
            for chunk in chunks {
                md5.update(chunk);
            }
            if md5.finalize()[..] != expected {
                return Err(md5_mismatch());
            }
        }
        Ok(own.finalize())
    }
}

/// What an object received in order must hash to.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    /// The ETag as an MD5.
    Md5([u8; 16]),
    /// The service's SHA-256.
    Sha256(Vec<u8>),
}

impl Expected {
    /// What only bytes in order can verify.
    pub(super) fn of(etag: &ETag, checksum: Option<&Checksum>) -> Option<Self> {
        match (etag.md5(), checksum) {
            (_, Some(Checksum { algorithm: ChecksumAlgorithm::Sha256, value })) => {
                Some(Self::Sha256(value.clone()))
            }
            (Some(md5), _) => Some(Self::Md5(md5)),
            _ => None,
        }
    }

    /// Starts the hash that will be compared.
    pub(super) fn hasher(&self) -> InOrder {
        match self {
            Self::Md5(_) => InOrder::Md5(Md5::new()),
            Self::Sha256(_) => InOrder::Sha256(Sha256::new()),
        }
    }

    /// Whether the hash of all bytes is the expected one.
    pub(super) fn matches(&self, hash: InOrder) -> bool {
        match (self, hash) {
            (Self::Md5(expected), InOrder::Md5(md5)) => md5.finalize()[..] == expected[..],
            (Self::Sha256(expected), InOrder::Sha256(sha)) => sha.finalize()[..] == expected[..],
            _ => false,
        }
    }

    /// What to say when the hash differs.
    pub(super) fn mismatch(&self) -> String {
        match self {
            Self::Md5(_) => md5_mismatch(),
            Self::Sha256(_) => "the bytes received do not match the object's SHA-256".to_owned(),
        }
    }
}

/// Verifies a whole object that is in a file and has `crc`, our own CRC. Returns the problem; also if
/// the file cannot be read.
///
/// Blocks; reads the file unless the service's checksum is that CRC and nothing else is known.
pub(super) fn file(
    file: &File,
    size: u64,
    crc: u64,
    checksum: Option<&Checksum>,
    md5_etag: Option<&ETag>,
) -> Result<(), String> {
    let unread = |error: io::Error| format!("what was received cannot be read back: {error}");
    match checksum {
        Some(Checksum { algorithm: ChecksumAlgorithm::Crc64Nvme, value }) => {
            if value[..] != crc.to_be_bytes() {
                return Err(checksum_mismatch());
            }
        }
        Some(Checksum {
            algorithm: ChecksumAlgorithm::Crc32 | ChecksumAlgorithm::Crc32c, ..
        }) => {
            let mut whole = Verifier::new(checksum);
            through(file, 0..size, |bytes| whole.update(bytes)).map_err(unread)?;
            if whole.finish(checksum)? != crc {
                return Err("what was received is damaged in the store".to_owned());
            }
        }
        Some(Checksum { algorithm: ChecksumAlgorithm::Sha256, .. }) | None => {}
    }
    let no_md5 = ETag::new("");
    let Some(expected) = Expected::of(md5_etag.unwrap_or(&no_md5), checksum) else { return Ok(()) };
    let hash = expected.hasher().update(file, 0..size).map_err(unread)?;
    if expected.matches(hash) { Ok(()) } else { Err(expected.mismatch()) }
}

fn checksum_mismatch() -> String {
    "the bytes received do not match the object's checksum".to_owned()
}

fn md5_mismatch() -> String {
    "the bytes received do not match the object's ETag, which is their MD5".to_owned()
}

/// A hash over bytes in order.
#[derive(Debug)]
pub(super) enum InOrder {
    Md5(Md5),
    Sha256(Sha256),
}

impl InOrder {
    /// Hashes the next range of a file that holds it already. Blocks.
    pub(super) fn update(self, file: &File, range: Range<u64>) -> io::Result<Self> {
        match self {
            Self::Md5(md5) => hash(md5, file, range).map(Self::Md5),
            Self::Sha256(sha) => hash(sha, file, range).map(Self::Sha256),
        }
    }
}

fn hash<D: Digest>(mut digest: D, file: &File, range: Range<u64>) -> io::Result<D> {
    through(file, range, |bytes| digest.update(bytes))?;
    Ok(digest)
}

fn through(file: &File, range: Range<u64>, mut look: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = range.start;
    while at < range.end {
        let length = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..length], at)?;
        look(&buffer[..length]);
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn checksum(algorithm: ChecksumAlgorithm, value: &str) -> Checksum {
        Checksum { algorithm, value: hex::decode(value).unwrap() }
    }

    fn in_two_parts(checksum: &Checksum) -> Result<u64, String> {
        let mut first = Verifier::new(Some(checksum));
        let mut second = Verifier::new(Some(checksum));
        second.update(b"56789");
        first.update(b"1234");
        first.append(&second);
        first.finish(Some(checksum))
    }

    /// Check values of the CRC catalogue for "123456789".
    #[test]
    fn parts_combine_to_the_checksum_of_the_whole() {
        for (algorithm, value) in [
            (ChecksumAlgorithm::Crc64Nvme, "ae8b14860a799888"),
            (ChecksumAlgorithm::Crc32c, "e3069283"),
            (ChecksumAlgorithm::Crc32, "cbf43926"),
        ] {
            let own = in_two_parts(&checksum(algorithm, value));
            assert_eq!(own, Ok(0xae8b_1486_0a79_9888), "{algorithm:?}");
        }
        assert!(in_two_parts(&checksum(ChecksumAlgorithm::Crc32, "cbf43927")).is_err());
    }

    #[test]
    fn a_small_object_must_match_its_md5() {
        let chunks = [Bytes::from_static(b"hello "), Bytes::from_static(b"world")];
        let etag = ETag::new("5eb63bbbe01eeed093cb22bb8f5acdc3");
        assert!(Verifier::whole(&chunks, Some(&etag)).is_ok());
        assert!(Verifier::whole(&chunks[..1], Some(&etag)).is_err());
        assert!(Verifier::whole(&chunks[..1], None).is_ok());
    }

    #[test]
    fn ranges_of_a_file_hash_to_the_whole() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello world").unwrap();
        let expected = Expected::of(&ETag::new("5eb63bbbe01eeed093cb22bb8f5acdc3"), None).unwrap();
        let ranges = [0..4, 4..8, 8..11];
        let hash = |ranges: &[Range<u64>]| {
            let update = |hash: InOrder, range: &Range<u64>| hash.update(&file, range.clone());
            ranges.iter().try_fold(expected.hasher(), update).unwrap()
        };
        assert!(expected.matches(hash(&ranges)));
        assert!(!expected.matches(hash(&ranges[..2])));
    }
}
