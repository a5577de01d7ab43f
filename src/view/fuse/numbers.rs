//! What of an inode table outlives the process: the numbers, since all else is in the listing.
//!
//! ```text
//! "s3vn" 1   version
//! varint     next number, count of rows
//! 16 bytes   digest of the rows' names and versions: numbers of another listing are refused
//! varints    each row's number, as the difference to the one before
//! varints    each directory's time: seconds and nanoseconds
//! 8 bytes    digest of all of the above
//! ```
//!
//! The kernel holds numbers that a former process gave out, so a mistake here would show one file's
//! bytes under another's name. Nothing is taken on trust.

use std::{collections::HashMap, io, time::SystemTime};

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::table::{Body, Id, ROOT, Table};
use crate::{
    listing::{Listing, Moment, Origin},
    packed::{put, put_signed, take, take_signed},
    volume::Ownership,
};

const MAGIC: &[u8] = b"s3vn\x01";
const SHAPE: usize = 16;
const CHECK: usize = 8;

/// Why numbers are not those of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadNumbers {
    /// Another program wrote them, or a version that this one does not know.
    #[error("inode numbers must have a format that this version of the driver knows")]
    Unknown,
    /// Something was lost or changed.
    #[error("inode numbers are damaged")]
    Damaged,
    /// They belong to another listing.
    #[error("inode numbers must belong to the listing that is shown")]
    Other,
}

/// All that can go wrong with bytes in memory.
impl From<io::Error> for BadNumbers {
    fn from(_: io::Error) -> Self {
        Self::Damaged
    }
}

impl Table {
    /// The numbers as bytes: 2 to 4 for each file, as a rule.
    pub(super) fn numbers(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        self.put_numbers(&mut out).expect("a vector takes everything");
        let check = Sha256::digest(&out);
        out.extend_from_slice(&check[..CHECK]);
        out
    }

    fn put_numbers(&self, out: &mut Vec<u8>) -> io::Result<()> {
        for value in [self.next, self.rows.len() as u64] {
            put(out, value)?;
        }
        out.extend_from_slice(&self.shape());
        let mut last = 0;
        for row in &self.rows {
            put_signed(out, row.number.wrapping_sub(last).cast_signed())?;
            last = row.number;
        }
        for row in self.rows.iter().filter(|row| matches!(row.body, Body::Directory { .. })) {
            let Moment { seconds, nanos } = row.modified;
            put_signed(out, seconds)?;
            put(out, nanos.into())?;
        }
        Ok(())
    }

    /// The table of a listing with the numbers that a former process gave to it.
    ///
    /// # Errors
    /// [`BadNumbers`]; there is no table then, and what the kernel holds must not be served.
    pub(super) fn with_numbers(
        listing: &Listing,
        ownership: Ownership,
        numbers: &[u8],
    ) -> Result<Self, BadNumbers> {
        let mut input = checked(numbers)?;
        let (next, count) = (take(&mut input)?, take(&mut input)?);
        let (shape, mut input) = input.split_at_checked(SHAPE).ok_or(BadNumbers::Damaged)?;
        let mut table = Self::new(listing, ownership, SystemTime::UNIX_EPOCH);
        if count != table.rows.len() as u64 || shape != table.shape() {
            return Err(BadNumbers::Other);
        }
        table.next = next;
        let mut last = 0_u64;
        for row in &mut table.rows {
            last = last.wrapping_add(take_signed(&mut input)?.cast_unsigned());
            row.number = last;
        }
        for row in &mut table.rows {
            if matches!(row.body, Body::Directory { .. }) {
                let (seconds, nanos) = (take_signed(&mut input)?, take(&mut input)?);
                let nanos = u32::try_from(nanos).map_err(|_| BadNumbers::Damaged)?;
                row.modified = Moment { seconds, nanos };
            }
        }
        table.index()?;
        if input.is_empty() { Ok(table) } else { Err(BadNumbers::Damaged) }
    }

    /// Finds rows by the numbers that were read, which must all be different and given out.
    fn index(&mut self) -> Result<(), BadNumbers> {
        let numbered =
            |(index, row): (usize, &super::table::Row)| (row.number, Id::from_index(index));
        self.by_number = self.rows.iter().enumerate().map(numbered).collect::<HashMap<_, _>>();
        let given = self.rows.iter().all(|row| (ROOT..self.next).contains(&row.number));
        let good = given && self.by_number.len() == self.rows.len() && self.rows[0].number == ROOT;
        if good { Ok(()) } else { Err(BadNumbers::Damaged) }
    }

    /// A digest of what the numbers belong to: names and object versions, in order.
    fn shape(&self) -> [u8; SHAPE] {
        let mut hash = Sha256::new();
        for Origin { endpoint, bucket, sse_key, key_head, path_skip } in &self.origins {
            for part in [endpoint.as_str(), bucket.as_str(), &**key_head] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.update([u8::from(sse_key.is_some())]);
            hash.update(sse_key.map_or([0; 32], |digest| digest.0));
            hash.update((*path_skip as u64).to_le_bytes());
        }
        for row in &self.rows {
            let (size, origin, etag, count) = match row.body {
                Body::File { size, origin, etag, .. } => (size, origin, etag, u32::MAX),
                Body::Directory { first, count, .. } => (0, first.0, 0, count),
            };
            hash.update([row.name]);
            hash.update(self.names_and_etag(row, etag));
            hash.update(size.to_le_bytes());
            for part in [origin, etag, count] {
                hash.update(part.to_le_bytes());
            }
        }
        *hash.finalize().first_chunk().expect("SHA-256 is longer")
    }
}

/// The bytes before their digest, if that is right.
fn checked(bytes: &[u8]) -> Result<&[u8], BadNumbers> {
    if !bytes.starts_with(MAGIC) {
        return Err(BadNumbers::Unknown);
    }
    let (content, check) = bytes.split_last_chunk::<CHECK>().ok_or(BadNumbers::Damaged)?;
    let right = Sha256::digest(content)[..CHECK] == check[..];
    right.then(|| content.get(MAGIC.len()..)).flatten().ok_or(BadNumbers::Damaged)
}
