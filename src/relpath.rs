//! Where a key stands in a volume: the one place that turns S3 names into file names.
//!
//! A [`RelPath`] holds normal components only, so nothing that is built from one can leave the
//! volume. What no file system can hold is a [`PathProblem`], reported and never repaired: a
//! repaired name could collide with another key.

use std::{cmp::Ordering, fmt, sync::Arc};

use thiserror::Error;

/// The longest file name (`NAME_MAX` of Linux file systems), in bytes.
pub const MAX_NAME: usize = 255;

/// The longest path in a volume, in bytes; leaves room for the volume's own place in `PATH_MAX`.
pub const MAX_PATH: usize = 2048;

/// A relative path of one or more normal components.
///
/// Paths order as their components do, so that a directory's content is one contiguous run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelPath(Arc<str>);

/// Why a key has no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum PathProblem {
    /// Nothing remains below the prefix.
    #[error("the name is empty")]
    Empty,
    /// `a//b`, or a leading `/`.
    #[error("a segment is empty")]
    EmptySegment,
    /// `.` or `..`.
    #[error("a segment is '.' or '..'")]
    DotSegment,
    /// A NUL byte, which no path can hold.
    #[error("a segment holds a NUL byte")]
    Nul,
    /// A segment of more than 255 bytes.
    #[error("a segment is longer than 255 bytes")]
    LongSegment,
    /// The whole path is too long.
    #[error("the path is longer than 2048 bytes")]
    LongPath,
    /// A top-level name that begins with `..`, which revisions use.
    #[error("top-level names beginning with '..' are reserved")]
    Reserved,
    /// The key `a` beside `a/b`: a name cannot be a file and a directory.
    #[error("the key is also a directory of other keys")]
    AlsoDirectory,
    /// A key that ends in `/` and has content: a directory cannot show it.
    #[error("a directory marker has content, which a directory cannot show")]
    MarkerContent,
}

impl RelPath {
    /// Parses `a/b/c`.
    ///
    /// # Errors
    /// The first [`PathProblem`] found from left to right.
    pub fn parse(text: &str) -> Result<Self, PathProblem> {
        if text.is_empty() {
            return Err(PathProblem::Empty);
        }
        text.split('/').try_for_each(check_name)?;
        if text.starts_with("..") {
            return Err(PathProblem::Reserved);
        }
        if text.len() > MAX_PATH {
            return Err(PathProblem::LongPath);
        }
        Ok(Self(text.into()))
    }

    /// Appends `below`, which must parse on its own but for the reserved names, which only matter
    /// at the top.
    ///
    /// # Errors
    /// As [`RelPath::parse`].
    pub fn join(directory: Option<&Self>, below: &str) -> Result<Self, PathProblem> {
        match directory {
            None => Self::parse(below),
            Some(_) if below.is_empty() => Err(PathProblem::Empty),
            Some(directory) => Self::parse(&format!("{directory}/{below}")),
        }
    }

    /// The path as text, `/` between components.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        file_name(&self.0)
    }

    /// The directory above; `None` at the top level.
    pub fn parent(&self) -> Option<Self> {
        parent(&self.0).map(|parent| Self(parent.into()))
    }

    /// All directories above, the nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// The components from the top down; never empty.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.as_str(), other.as_str())
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the paths with these texts are ordered: as their components are, one after the other.
pub fn compare(a: &str, b: &str) -> Ordering {
    // No name holds a NUL, so it can stand for the end of one: before all that can go on there.
    let ends_first = |byte: u8| if byte == b'/' { 0 } else { byte };
    match a.bytes().zip(b.bytes()).find(|(a, b)| a != b) {
        Some((a, b)) => ends_first(a).cmp(&ends_first(b)),
        None => a.len().cmp(&b.len()),
    }
}

/// The last component of the path with this text.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// The directory above the path with this text; `None` at the top level.
pub fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

fn check_name(name: &str) -> Result<(), PathProblem> {
    match name {
        "" => Err(PathProblem::EmptySegment),
        "." | ".." => Err(PathProblem::DotSegment),
        _ if name.contains('\0') => Err(PathProblem::Nul),
        _ if name.len() > MAX_NAME => Err(PathProblem::LongSegment),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    #[test_case("a", None)]
    #[test_case("a/b/..c", None; "dots inside are names")]
    #[test_case("", Some(PathProblem::Empty))]
    #[test_case("/a", Some(PathProblem::EmptySegment); "leading slash")]
    #[test_case("a//b", Some(PathProblem::EmptySegment))]
    #[test_case("a/", Some(PathProblem::EmptySegment); "trailing slash")]
    #[test_case("a/../b", Some(PathProblem::DotSegment))]
    #[test_case(".", Some(PathProblem::DotSegment); "dot")]
    #[test_case("..", Some(PathProblem::DotSegment); "dot dot")]
    #[test_case("..data", Some(PathProblem::Reserved))]
    #[test_case("a\0b", Some(PathProblem::Nul))]
    fn keys_become_paths_or_are_refused(text: &str, problem: Option<PathProblem>) {
        assert_eq!(RelPath::parse(text).err(), problem);
    }

    #[test]
    fn a_name_of_255_bytes_is_the_longest() {
        assert!(RelPath::parse(&"x".repeat(255)).is_ok());
        assert_eq!(RelPath::parse(&"x".repeat(256)), Err(PathProblem::LongSegment));
    }

    #[test]
    fn a_path_of_2048_bytes_is_the_longest() {
        let long = vec!["x".repeat(127); 16].join("/");
        assert_eq!(long.len(), 2047);
        assert!(RelPath::parse(&format!("{long}y")).is_ok());
        assert_eq!(RelPath::parse(&format!("{long}yz")), Err(PathProblem::LongPath));
    }

    #[test]
    fn a_directory_is_one_run_in_the_order() {
        let mut paths: Vec<_> =
            ["a-b", "a/x", "a", "a.b", "a/b/c"].map(|p| RelPath::parse(p).unwrap()).to_vec();
        paths.sort();
        let texts: Vec<_> = paths.iter().map(RelPath::as_str).collect();
        assert_eq!(texts, ["a", "a/b/c", "a/x", "a-b", "a.b"]);
    }

    proptest! {
        #[test]
        fn paths_are_ordered_as_their_components(a in "[a\u{1}/\u{e9}0-]{0,6}", b in "[a\u{1}/\u{e9}0-]{0,6}") {
            if let (Ok(a), Ok(b)) = (RelPath::parse(&a), RelPath::parse(&b)) {
                prop_assert_eq!(a.cmp(&b), a.components().cmp(b.components()));
            }
        }

        #[test]
        fn no_text_escapes_the_volume(text in "[a./\0~ é-]{0,12}") {
            if let Ok(path) = RelPath::parse(&text) {
                prop_assert!(path.components().all(|c| !matches!(c, "" | "." | "..")));
                let joined = std::path::Path::new("/v").join(path.as_str());
                prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
                prop_assert!(joined.starts_with("/v"));
                prop_assert_eq!(path.as_str(), text);
            }
        }
    }
}
