//! A listing as bytes, for another process of the same node.
//!
//! ```text
//! varint   count of files; for each
//!   path     how many bytes it shares with the one before, then the rest
//!   origin   which of those seen so far; one more than there are: it follows
//!   ETag, size, version id (or nothing), time
//! varint   count of directories; for each its path, as above
//! varint   count of skipped keys; varint, texts: those that are named
//! ```
//!
//! About 60 bytes for each file. It is written and read as a stream, whatever its size. Everything is
//! parsed again when it is read: a file is no better than a key that comes from S3. Versions and
//! check sums belong to whatever holds it.

use std::{
    io::{self, Read, Write},
    str,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Listing, NAMED_SKIPS, Origin, Skipped, files::Packer};
use crate::{
    object::{Bucket, ETag, EndpointId, Key, Object, ObjectVersion, SseKeyDigest},
    packed::{invalid, put, put_bytes, take, take_bytes, take_text},
    relpath::RelPath,
};

/// No text is longer: keys have 1 KiB, paths 4 KiB, and a skipped key may be escaped.
const MOST: usize = 64 << 10;

impl Listing {
    /// Writes all of it.
    ///
    /// # Errors
    /// What the writer answers.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut known = 0;
        let mut last = "";
        put(out, self.len() as u64)?;
        for row in self.rows() {
            put_path(out, last, row.path())?;
            last = row.path();
            put(out, row.origin_number().into())?;
            if row.origin_number() == known {
                put_origin(out, row.origin())?;
                known += 1;
            }
            put_version(out, (row.etag(), row.size(), row.version_id(), row.modified().into()))?;
        }
        put(out, self.directories.len() as u64)?;
        let mut last = "";
        for path in &self.directories {
            put_path(out, last, path.as_str())?;
            last = path.as_str();
        }
        put(out, self.skipped.count)?;
        put(out, self.skipped.first.len() as u64)?;
        self.skipped.first.iter().try_for_each(|text| put_bytes(out, text.as_bytes()))
    }

    /// Reads what [`Listing::write`] wrote.
    ///
    /// # Errors
    /// `InvalidData` and `UnexpectedEof` for what is no listing; what the reader answers.
    pub fn read(input: &mut impl Read) -> io::Result<Self> {
        let (mut packer, mut directories) = (Packer::default(), Vec::new());
        let mut origins = Vec::new();
        let mut last = String::new();
        for _ in 0..take(input)? {
            take_path(input, &mut last)?;
            let index = usize::try_from(take(input)?).unwrap_or(usize::MAX);
            if index == origins.len() {
                origins.push(take_origin(input)?);
            }
            let origin = origins.get(index).ok_or_else(|| invalid("no origin"))?;
            let object = take_version(input, origin, &last)?;
            packer.push(0, &parsed(&last)?, &object);
        }
        last.clear();
        for _ in 0..take(input)? {
            take_path(input, &mut last)?;
            directories.push(parsed(&last)?);
        }
        let (count, named) = (take(input)?, take(input)?);
        if named > NAMED_SKIPS as u64 {
            return Err(invalid("more skipped keys than are named"));
        }
        let first = (0..named).map(|_| take_text(input, MOST)).collect::<io::Result<_>>()?;
        Self::from_files(packer.files, directories, Skipped { count, first })
            .ok_or_else(|| invalid("no listing"))
    }
}

/// Writes one object by itself.
///
/// # Errors
/// What the writer answers.
pub fn write_object(out: &mut impl Write, object: &Object) -> io::Result<()> {
    put_origin(out, &Origin::of("", &object.version))?;
    let Object { version: ObjectVersion { etag, size, .. }, version_id, last_modified } = object;
    put_version(out, (etag.as_str(), *size, version_id.as_deref(), *last_modified))
}

/// Reads what [`write_object`] wrote.
///
/// # Errors
/// As [`Listing::read`].
pub fn read_object(input: &mut impl Read) -> io::Result<Object> {
    let origin = take_origin(input)?;
    take_version(input, &origin, "")
}

fn put_path(out: &mut impl Write, last: &str, path: &str) -> io::Result<()> {
    let shared = last.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
    put(out, shared as u64)?;
    put_bytes(out, &path.as_bytes()[shared..])
}

/// Turns the last path into the next one.
fn take_path(input: &mut impl Read, last: &mut String) -> io::Result<()> {
    let mut path = std::mem::take(last).into_bytes();
    let shared = usize::try_from(take(input)?).ok().filter(|shared| *shared <= path.len());
    path.truncate(shared.ok_or_else(|| invalid("no beginning of the path before"))?);
    path.extend(take_bytes(input, MOST)?);
    *last = String::from_utf8(path).map_err(|_| invalid("no text"))?;
    Ok(())
}

fn parsed(path: &str) -> io::Result<RelPath> {
    RelPath::parse(path).map_err(|_| invalid("no path"))
}

fn put_origin(out: &mut impl Write, origin: &Origin) -> io::Result<()> {
    let Origin { endpoint, bucket, sse_key, key_head, path_skip } = origin;
    for text in [endpoint.as_str(), bucket.as_str()] {
        put_bytes(out, text.as_bytes())?;
    }
    put_bytes(out, sse_key.as_ref().map_or(&[], |digest| &digest.0[..]))?;
    put_bytes(out, key_head.as_bytes())?;
    put(out, *path_skip as u64)
}

fn take_origin(input: &mut impl Read) -> io::Result<Origin> {
    let endpoint = EndpointId::from_text(&take_text(input, MOST)?);
    let bucket = Bucket::parse(&take_text(input, MOST)?).map_err(|_| invalid("no bucket"))?;
    let digest = take_bytes(input, size_of::<SseKeyDigest>())?;
    let sse_key = match <[u8; 32]>::try_from(digest) {
        Ok(digest) => Some(SseKeyDigest(digest)),
        Err(digest) if digest.is_empty() => None,
        Err(_) => return Err(invalid("no digest")),
    };
    let key_head = Arc::from(take_text(input, MOST)?);
    let path_skip = usize::try_from(take(input)?).map_err(|_| invalid("no length"))?;
    Ok(Origin { endpoint, bucket, sse_key, key_head, path_skip })
}

fn put_version(
    out: &mut impl Write,
    (etag, size, version_id, modified): (&str, u64, Option<&str>, SystemTime),
) -> io::Result<()> {
    put_bytes(out, etag.as_bytes())?;
    put(out, size)?;
    put_bytes(out, version_id.unwrap_or_default().as_bytes())?;
    put_time(out, modified)
}

fn take_version(input: &mut impl Read, origin: &Origin, path: &str) -> io::Result<Object> {
    let etag = ETag::new(&take_text(input, MOST)?);
    let size = take(input)?;
    let version_id = take_text(input, MOST)?;
    let last_modified = take_time(input)?;
    let key = origin.key(path).and_then(|key| Key::parse(&key).ok());
    let version = ObjectVersion {
        endpoint: origin.endpoint.clone(),
        bucket: origin.bucket.clone(),
        key: key.ok_or_else(|| invalid("no key"))?,
        etag,
        size,
        sse_key: origin.sse_key,
    };
    let version_id = (!version_id.is_empty()).then(|| version_id.into());
    Ok(Object { version, version_id, last_modified })
}

/// Seconds before or after the epoch, and what is left of a second, in the same direction.
fn put_time(out: &mut impl Write, time: SystemTime) -> io::Result<()> {
    let (is_past, length) = match time.duration_since(UNIX_EPOCH) {
        Ok(length) => (false, length),
        Err(before) => (true, before.duration()),
    };
    put(out, length.as_secs())?;
    put(out, u64::from(length.subsec_nanos()) << 1 | u64::from(is_past))
}

fn take_time(input: &mut impl Read) -> io::Result<SystemTime> {
    let (seconds, rest) = (take(input)?, take(input)?);
    let nanos = u32::try_from(rest >> 1).ok().filter(|nanos| *nanos < 1_000_000_000);
    let length = Duration::new(seconds, nanos.ok_or_else(|| invalid("no time"))?);
    let time = match rest & 1 {
        0 => UNIX_EPOCH.checked_add(length),
        _ => UNIX_EPOCH.checked_sub(length),
    };
    time.ok_or_else(|| invalid("no time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{glob::Filter, listing::ListingBuilder};

    fn object(key: &str, nanos: u64) -> Object {
        let version = ObjectVersion {
            endpoint: EndpointId::new("http://s3:9000/", Some(b"bundle")),
            bucket: Bucket::parse("bucket").unwrap(),
            key: Key::parse(key).unwrap(),
            etag: ETag::new("0123456789abcdef0123456789abcdef-7"),
            size: u64::from(!key.ends_with('/')) << 40,
            sse_key: key.starts_with('s').then_some(SseKeyDigest([7; 32])),
        };
        let version_id = key.contains('v').then(|| "a version".into());
        let last_modified = UNIX_EPOCH + Duration::from_nanos(nanos);
        Object { version, version_id, last_modified }
    }

    fn listing() -> Listing {
        let mut builder = ListingBuilder::new(100);
        let below = RelPath::parse("elsewhere/x").unwrap();
        for (n, key) in
            ["a", "d/b", "d/v", "d/\u{e9}", "e/", "x//y", "sse/k"].into_iter().enumerate()
        {
            for directory in [None, Some(&below)] {
                let object = object(key, 1_500_000_000 * n as u64);
                builder.add_below(directory, key, &Filter::default(), &object).unwrap();
            }
        }
        builder.finish().unwrap()
    }

    fn bytes(listing: &Listing) -> Vec<u8> {
        let mut bytes = Vec::new();
        listing.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_listing_is_read_as_it_was_written() {
        for listing in [Listing::default(), listing()] {
            let bytes = bytes(&listing);
            let mut input = &bytes[..];
            assert_eq!(Listing::read(&mut input).unwrap(), listing);
            assert!(input.is_empty());
        }
        assert!(listing().skipped().count() > 0);
    }

    #[test]
    fn an_object_is_read_as_it_was_written() {
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        for object in [object("s/v", 1), Object { last_modified: before, ..object("a", 0) }] {
            let mut bytes = Vec::new();
            write_object(&mut bytes, &object).unwrap();
            assert_eq!(read_object(&mut &bytes[..]).unwrap(), object);
        }
    }

    #[test]
    fn part_of_a_listing_is_none() {
        let bytes = bytes(&listing());
        for length in 0..bytes.len() {
            Listing::read(&mut &bytes[..length]).unwrap_err();
        }
    }

    #[test]
    fn damage_gives_an_error_or_a_listing_and_nothing_worse() {
        let good = bytes(&listing());
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            drop(Listing::read(&mut &bytes[..]));
        }
    }

    #[test]
    fn a_file_takes_few_bytes() {
        let mut builder = ListingBuilder::new(10_000);
        for n in 0..10_000 {
            let key = format!("data/part-{:03}/file-{n:07}.parquet", n % 1000);
            let path = key.strip_prefix("data/").unwrap();
            builder.add_file(&RelPath::parse(path).unwrap(), &object(&key, n)).unwrap();
        }
        let each = bytes(&builder.finish().unwrap()).len() / 10_000;
        assert!(each <= 90, "{each}");
    }
}
