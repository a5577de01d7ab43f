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

use std::{collections::HashMap, time::SystemTime};

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::table::{Body, Id, Moment, Origin, ROOT, Table};
use crate::{listing::Listing, volume::Ownership};

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

impl Table {
    /// The numbers as bytes: 2 to 4 for each file, as a rule.
    pub(super) fn numbers(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for value in [self.next, self.rows.len() as u64] {
            put(&mut out, value);
        }
        out.extend_from_slice(&self.shape());
        let mut last = 0;
        for row in &self.rows {
            put_signed(&mut out, row.number.wrapping_sub(last).cast_signed());
            last = row.number;
        }
        for row in self.rows.iter().filter(|row| matches!(row.body, Body::Directory { .. })) {
            let Moment { seconds, nanos } = row.modified;
            put_signed(&mut out, seconds);
            put(&mut out, nanos.into());
        }
        let check = Sha256::digest(&out);
        out.extend_from_slice(&check[..CHECK]);
        out
    }

    /// The table of a listing with the numbers that a former process gave to it.
    ///
    /// # Errors
    /// [`BadNumbers`]; there is no table then, and what the kernel holds must not be served.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "called once a process goes on with the mounts of another")
    )]
    pub(super) fn with_numbers(
        listing: &Listing,
        ownership: Ownership,
        numbers: &[u8],
    ) -> Result<Self, BadNumbers> {
        let mut input = Input(checked(numbers)?);
        let (next, count) = (input.take()?, input.take()?);
        let shape = input.bytes(SHAPE)?;
        let mut table = Self::new(listing, ownership, SystemTime::UNIX_EPOCH);
        if count != table.rows.len() as u64 || shape != table.shape() {
            return Err(BadNumbers::Other);
        }
        table.next = next;
        let mut last = 0_u64;
        for row in &mut table.rows {
            last = last.wrapping_add(input.take_signed()?.cast_unsigned());
            row.number = last;
        }
        for row in &mut table.rows {
            if matches!(row.body, Body::Directory { .. }) {
                let (seconds, nanos) = (input.take_signed()?, input.take()?);
                let nanos = u32::try_from(nanos).map_err(|_| BadNumbers::Damaged)?;
                row.modified = Moment { seconds, nanos };
            }
        }
        table.index()?;
        if input.0.is_empty() { Ok(table) } else { Err(BadNumbers::Damaged) }
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

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Small amounts in either direction are short.
fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], BadNumbers> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(BadNumbers::Damaged)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn take(&mut self) -> Result<u64, BadNumbers> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BadNumbers::Damaged)
    }

    fn take_signed(&mut self) -> Result<i64, BadNumbers> {
        let value = self.take()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }
}
