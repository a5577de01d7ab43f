//! The bytes of an object, and their digests.
//!
//! An object is served as slices of shared memory: no byte is copied on the way to the socket. Large
//! generated objects have no memory of their own. They repeat one shared block whose length is
//! prime, so that no part size divides it: parts put together in the wrong order would have other
//! bytes, which a period of a power of two would hide.

use std::ops::Range;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use s3s::StdError;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc64Nvme, Md5};
use s3s::dto::{Checksum, ChecksumType};
use s3s::stream::{ByteStream, RemainingLength};

/// The largest prime below 8 MiB.
const PERIOD: usize = 8_388_593;

/// The largest slice that is handed to the connection at once.
const CHUNK: u64 = 256 * 1024;

static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(PERIOD).collect()
});

/// The bytes of one object version.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Bytes that were put.
    Whole(Bytes),
    /// A repeated block, read from a place that depends on the key.
    Pattern {
        /// Where in the block the object begins.
        start: usize,
        /// Length of the object in bytes.
        size: u64,
    },
}

impl Content {
    /// Generated content of `size` bytes: the same for the same seed.
    pub(crate) fn pattern(seed: &str, size: u64) -> Self {
        let hash = seed.bytes().fold(5381_usize, |hash, byte| {
            hash.wrapping_mul(33).wrapping_add(usize::from(byte)) % PERIOD
        });
        Self::Pattern { start: hash, size }
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Pattern { size, .. } => *size,
        }
    }

    /// The bytes of `range`, which must lie inside the object, in slices of at most [`CHUNK`].
    pub(crate) fn chunks(&self, range: Range<u64>) -> Chunks {
        Chunks { content: self.clone(), rest: range }
    }

    /// All bytes in one piece; copies generated content.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self {
            Self::Whole(bytes) => bytes.clone(),
            Self::Pattern { size, .. } => {
                let mut all = BytesMut::new();
                self.chunks(0..*size).for_each(|chunk| all.extend_from_slice(&chunk));
                all.freeze()
            }
        }
    }

    /// MD5 of `range`.
    pub(crate) fn md5(&self, range: Range<u64>) -> [u8; 16] {
        let mut hash = Md5::new();
        self.chunks(range).for_each(|chunk| hash.update(&chunk));
        hash.finalize()
    }

    /// What S3 stores for an object whose client sent no checksum.
    pub(crate) fn default_checksum(&self) -> Checksum {
        let mut hasher =
            ChecksumHasher { crc64nvme: Some(Crc64Nvme::default()), ..ChecksumHasher::default() };
        self.chunks(0..self.size()).for_each(|chunk| hasher.update(&chunk));
        full_object(hasher)
    }

    /// ETag of an object uploaded in parts of `part_size` bytes.
    pub(crate) fn multipart_etag(&self, part_size: u64) -> String {
        let size = self.size();
        let starts = (0..size.max(1)).step_by(usize::try_from(part_size).expect("64 bit"));
        let parts: Vec<_> = starts.map(|at| self.md5(at..size.min(at + part_size))).collect();
        multipart_etag(&parts)
    }

    fn slice(&self, from: u64, to: u64) -> Bytes {
        let at = |offset: u64| usize::try_from(offset).expect("64 bit");
        match self {
            Self::Whole(bytes) => bytes.slice(at(from)..at(to)),
            Self::Pattern { start, .. } => {
                let begin = (start + at(from)) % PERIOD;
                BLOCK.slice(begin..PERIOD.min(begin + at(to - from)))
            }
        }
    }
}

/// The checksums of `hasher`, as of the whole object.
pub(crate) fn full_object(hasher: ChecksumHasher) -> Checksum {
    let checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
    Checksum { checksum_type, ..hasher.finalize() }
}

/// ETag of parts with these MD5 digests: the digest of the digests, and their number.
pub(crate) fn multipart_etag(parts: &[[u8; 16]]) -> String {
    format!("{}-{}", hex::encode(Md5::checksum(&parts.concat())), parts.len())
}

/// A range of a [`Content`], slice by slice.
#[derive(Debug)]
pub(crate) struct Chunks {
    content: Content,
    rest: Range<u64>,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let chunk = self.content.slice(self.rest.start, self.rest.end.min(self.rest.start + CHUNK));
        self.rest.start += chunk.len() as u64;
        Some(chunk)
    }
}

impl Stream for Chunks {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Iterator::next(&mut *self).map(Ok))
    }
}

impl ByteStream for Chunks {
    fn remaining_length(&self) -> RemainingLength {
        let rest = self.rest.end - self.rest.start;
        RemainingLength::new_exact(usize::try_from(rest).expect("64 bit"))
    }
}
