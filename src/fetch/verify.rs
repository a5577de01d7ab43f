//! Telling whether bytes are the object's: its ETag where that is an MD5, its checksum where the
//! service keeps one, and our own CRC-64 over everything, which names the blob.
//!
//! CRCs of parts combine, so parts may arrive in any order. MD5 and SHA-256 do not: [`Expected`]
//! reads the file behind the parts, in order, while later ones are still under way.

use std::{fs::File, io, os::unix::fs::FileExt, sync::mpsc::Receiver};

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
        if expected == Some(&computed) {
            Ok(own)
        } else {
            Err("the bytes received do not match the object's checksum".to_owned())
        }
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

    /// Hashes the file in order, each part as soon as it and all before it are there.
    ///
    /// `finished` delivers the numbers of finished parts, in any order. Returns whether the hash
    /// is the expected one; `None` if the channel closed before all parts were there.
    ///
    /// # Blocking
    /// Until all parts are there.
    pub(super) fn check(
        self,
        file: &File,
        ranges: &[std::ops::Range<u64>],
        finished: &Receiver<usize>,
    ) -> io::Result<Option<bool>> {
        match self {
            Self::Md5(expected) => {
                Ok(hash_in_order(Md5::new(), file, ranges, finished)?.map(|hash| hash == expected))
            }
            Self::Sha256(expected) => {
                let hash = hash_in_order(Sha256::new(), file, ranges, finished)?;
                Ok(hash.map(|hash| hash == expected))
            }
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

fn md5_mismatch() -> String {
    "the bytes received do not match the object's ETag, which is their MD5".to_owned()
}

fn hash_in_order<D: Digest>(
    mut digest: D,
    file: &File,
    ranges: &[std::ops::Range<u64>],
    finished: &Receiver<usize>,
) -> io::Result<Option<Vec<u8>>> {
    let mut done = vec![false; ranges.len()];
    let mut buffer = vec![0; 256 * 1024];
    for (index, range) in ranges.iter().enumerate() {
        while !done[index] {
            match finished.recv() {
                Ok(part) => done[part] = true,
                Err(_) => return Ok(None),
            }
        }
        let mut at = range.start;
        while at < range.end {
            let length = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..length], at)?;
            digest.update(&buffer[..length]);
            at += length as u64;
        }
    }
    Ok(Some(digest.finalize().to_vec()))
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
    fn parts_in_any_order_are_hashed_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello world").unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for part in [2, 0, 1] {
            sender.send(part).unwrap();
        }
        let ranges = [0..4, 4..8, 8..11];
        let etag = ETag::new("5eb63bbbe01eeed093cb22bb8f5acdc3");
        let expected = Expected::of(&etag, None).unwrap();
        assert_eq!(expected.clone().check(&file, &ranges, &receiver).unwrap(), Some(true));
        drop(sender);
        assert_eq!(expected.check(&file, &ranges, &receiver).unwrap(), None);
    }
}
