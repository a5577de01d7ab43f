//! What the volume of these tests shows: in each version some files that stay and some that do not.

use super::super::listing as listed;
use crate::listing::Listing;

/// Long enough for several reads.
pub(super) const LONG: u64 = 700_001;

/// The files of a version, each a path, an `ETag` that the content follows from, and a size.
pub(super) fn files(version: usize) -> Vec<(String, String, u64)> {
    let file = |path: String, version: usize, size| {
        let etag = format!("{}@{version}", path.replace('/', "_"));
        (path, etag, size)
    };
    let mut files: Vec<_> = (0..40).map(|n| file(format!("same/{n:02}"), 0, 50 + n)).collect();
    files.push(file("dir/changed".into(), version, 5000));
    files.push(file("whole/changed".into(), version, 5001));
    files.push(file(format!("v{version}/only"), version, 10));
    files.extend((0..4).map(|n| file(format!("slow/{n}"), 0, LONG)));
    files.extend((0..4).map(|n| file(format!("whole/{n}"), 0, LONG)));
    files
}

pub(super) fn listing(version: usize) -> Listing {
    let files = files(version);
    let files: Vec<_> = files.iter().map(|(path, etag, size)| (&**path, &**etag, *size)).collect();
    listed(&files)
}

/// Which version a listing is of.
pub(super) fn version(listing: &Listing) -> usize {
    let mut names = listing.directories().iter().filter_map(|path| path.as_str().strip_prefix('v'));
    names.next().unwrap().parse().unwrap()
}

/// The bytes of an object: lines, all of them different.
pub(super) fn content(etag: &str, size: u64) -> Vec<u8> {
    let size = usize::try_from(size).unwrap();
    let mut bytes = Vec::with_capacity(size + 64);
    let mut line = 0;
    while bytes.len() < size {
        bytes.extend(format!("{etag} {line}\n").bytes());
        line += 1;
    }
    bytes.truncate(size);
    bytes
}

/// The bytes of a file in a version.
pub(super) fn file(path: &str, version: usize) -> Vec<u8> {
    let (_, etag, size) = files(version).into_iter().find(|(known, ..)| known == path).unwrap();
    content(&etag, size)
}

/// The version of a file that has exactly these bytes.
pub(super) fn version_of(path: &str, bytes: &[u8]) -> usize {
    let text = std::str::from_utf8(bytes).unwrap();
    let (_, rest) = text.split_once('@').unwrap();
    let version = rest.split_once(' ').unwrap().0.parse().unwrap();
    assert!(bytes == file(path, version), "{path} is a mix");
    version
}
