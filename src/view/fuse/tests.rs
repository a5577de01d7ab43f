use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{
    listing::{Listing, ListingBuilder},
    object::{Bucket, ETag, EndpointId, Key, Object, ObjectVersion},
    relpath::RelPath,
    units::Mode,
    volume::Ownership,
};

mod errors;
mod memory;
mod mounted;
mod oracle;
mod passthrough;
mod relayed;
mod swap;
mod table;
mod takeover;
mod unasked;

pub(super) use takeover::server::dies_at;

pub(super) const OWNERSHIP: Ownership = Ownership {
    uid: 185,
    gid: 1000,
    file_mode: Mode::from_bits(0o440).unwrap(),
    dir_mode: Mode::from_bits(0o550).unwrap(),
};

/// The moment that many seconds after the epoch.
pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// An object of the key `data/<path>`.
pub(super) fn object(path: &str, etag: &str, size: u64) -> Object {
    let version = ObjectVersion {
        endpoint: EndpointId::new("http://s3:9000", None),
        bucket: Bucket::parse("bucket").unwrap(),
        key: Key::parse(&format!("data/{path}")).unwrap(),
        etag: ETag::new(etag),
        size,
        sse_key: None,
    };
    Object { version, version_id: None, last_modified: at(1_000) }
}

/// A listing of files, each a path, an `ETag` and a size.
pub(super) fn listing(files: &[(&str, &str, u64)]) -> Listing {
    let mut builder = ListingBuilder::new(10_000_000);
    for (path, etag, size) in files {
        builder.add_file(&RelPath::parse(path).unwrap(), &object(path, etag, *size)).unwrap();
    }
    builder.finish().unwrap()
}
