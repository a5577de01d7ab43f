//! The kernel's mount table: a pure parser of mountinfo, and what it says about propagation.
//!
//! A mount is looked up by the id that `statx(2)` gives for a path, not by comparing paths:
//! stacked mounts, renamed directories and `(deleted)` suffixes make text ambiguous.
//! Source: `proc_pid_mountinfo(5)`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::error::{Failed, MountError};
use super::kernel;

/// The calling thread's table. Not `/proc/self`: a thread may be in a mount namespace of its own.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// How mount events travel between a mount and its copies in other namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Events go out and come in (a shared mount that is also a slave counts as shared).
    Shared,
    /// Events come in only.
    Slave,
    /// Neither.
    Private,
    /// Neither, and it cannot be bound.
    Unbindable,
}

/// One mounted filesystem: one line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Unique while the mount exists.
    pub id: u64,
    /// The mount that this one lies on.
    pub parent: u64,
    /// The directory of the filesystem that is visible at the mount point.
    pub root: PathBuf,
    /// Where it is mounted, below the root directory of the process.
    pub mount_point: PathBuf,
    /// Options of this mount, separated by commas.
    pub options: String,
    /// Whether mounts made below are seen elsewhere.
    pub propagation: Propagation,
    /// The kind of filesystem, such as `tmpfs`.
    pub filesystem: String,
    /// Options of the filesystem, separated by commas.
    pub filesystem_options: String,
}

impl Entry {
    /// Whether an option, of the mount or of its filesystem, is set.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.split(',').chain(self.filesystem_options.split(',')).any(|it| it == name)
    }

    /// Whether the mount shows a directory or file whose path ends in `place`, or something below.
    pub fn shows(&self, place: &Path) -> bool {
        self.root.ancestors().any(|path| path.ends_with(place))
    }
}

/// A line that is not as the kernel writes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of mountinfo is malformed: {text:?}")]
pub struct Malformed {
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// Parses the content of a mountinfo file.
///
/// # Errors
/// The first line without the fields that every kernel writes. Unknown optional fields are fine.
pub fn parse(mountinfo: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let lines = mountinfo.split(|byte| *byte == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(index, line)| {
            parse_line(line).ok_or_else(|| Malformed {
                line: index + 1,
                text: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let _device = fields.next()?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = text(fields.next()?);
    let mut propagation = Propagation::Private;
    loop {
        match fields.next()? {
            b"-" => break,
            field if field.starts_with(b"shared:") => propagation = Propagation::Shared,
            field if field.starts_with(b"master:") && propagation != Propagation::Shared => {
                propagation = Propagation::Slave;
            }
            b"unbindable" => propagation = Propagation::Unbindable,
            _ => {}
        }
    }
    let filesystem = text(fields.next()?);
    let _source = fields.next()?;
    let filesystem_options = text(fields.next()?);
    Some(Entry {
        id,
        parent,
        root,
        mount_point,
        options,
        propagation,
        filesystem,
        filesystem_options,
    })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

/// Resolves `\ooo`, which the kernel writes for space, tab, newline and backslash.
fn unescape(mut field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    while let [first, rest @ ..] = field {
        let (byte, after) = match field {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), after)
            }
            _ => (*first, rest),
        };
        plain.push(byte);
        field = after;
    }
    plain
}

/// The mounts that this thread sees.
///
/// # Errors
/// `System` if the file cannot be read (no /proc), `Table` if it is not as the kernel writes it.
pub fn mounts() -> Result<Vec<Entry>, MountError> {
    let content =
        fs::read(MOUNTINFO).map_err(|e| Failed::new("read", e).at(Path::new(MOUNTINFO)))?;
    Ok(parse(&content)?)
}

/// The mount that holds `path`; at a mount point, the topmost one mounted there.
///
/// # Errors
/// As [`mounts`]; `NotFound` if the path is missing.
pub fn entry_of(path: &Path) -> Result<Entry, MountError> {
    let failed = |errno| Failed::new("find the mount of", errno).at(path);
    let mount_id = kernel::statx(path).map_err(failed)?.mount_id;
    let found = mounts()?.into_iter().find(|entry| entry.id == mount_id);
    // Missing only if it was unmounted between the two questions.
    found.ok_or_else(|| failed(nix::errno::Errno::ENOENT))
}

/// How mounts made below `path` travel to other namespaces. Follows symlinks.
///
/// # Errors
/// As [`entry_of`].
pub fn propagation_of(path: &Path) -> Result<Propagation, MountError> {
    let path = path.canonicalize().map_err(|e| Failed::new("resolve", e).at(path))?;
    Ok(entry_of(&path)?.propagation)
}

/// Refuses directories below which a container's mounts would be seen by nobody else.
///
/// Outside of Kubernetes (no `KUBERNETES_SERVICE_HOST`) everything passes: the plugin and its
/// mounts are in one namespace then.
///
/// # Errors
/// `NotShared` for the first directory that does not propagate; as [`propagation_of`] else.
pub fn check_propagation(paths: &[&Path]) -> Result<(), MountError> {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return Ok(());
    }
    paths.iter().try_for_each(|path| require_shared(path))
}

fn require_shared(path: &Path) -> Result<(), MountError> {
    match propagation_of(path)? {
        Propagation::Shared => Ok(()),
        Propagation::Slave | Propagation::Private | Propagation::Unbindable => {
            Err(MountError::NotShared { path: path.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::mount::MsFlags;
    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;
    use crate::mount::scratch::{in_private_namespace, mount_tmpfs, set_propagation};

    const TMPFS: &str = "36 35 0:45 / /state/tmpfs rw,nosuid shared:7 - tmpfs s3view rw,size=4k";

    #[test]
    fn a_line_becomes_an_entry() {
        let entries = parse(TMPFS.as_bytes()).unwrap();
        let expected = Entry {
            id: 36,
            parent: 35,
            root: "/".into(),
            mount_point: "/state/tmpfs".into(),
            options: "rw,nosuid".into(),
            propagation: Propagation::Shared,
            filesystem: "tmpfs".into(),
            filesystem_options: "rw,size=4k".into(),
        };
        assert_eq!(entries, [expected]);
        assert!(entries[0].has_option("nosuid") && entries[0].has_option("size=4k"));
        assert!(!entries[0].has_option("size"));
    }

    #[test_case("", Propagation::Private)]
    #[test_case("shared:1 ", Propagation::Shared)]
    #[test_case("master:2 ", Propagation::Slave)]
    #[test_case("shared:1 master:2 ", Propagation::Shared; "shared and slave")]
    #[test_case("master:2 propagate_from:3 ", Propagation::Slave; "a slave with its dominator")]
    #[test_case("unbindable ", Propagation::Unbindable)]
    #[test_case("brand-new:9 ", Propagation::Private; "an unknown optional field")]
    fn optional_fields_tell_the_propagation(fields: &str, expected: Propagation) {
        let line = format!("1 0 8:1 / / rw {fields}- ext4 /dev/root rw");
        assert_eq!(parse(line.as_bytes()).unwrap()[0].propagation, expected);
    }

    #[test_case(r"/a\040b", "/a b"; "a space")]
    #[test_case(r"/a\011b\012", "/a\tb\n"; "a tab and a newline")]
    #[test_case(r"/a\134040", r"/a\040"; "a backslash is not resolved twice")]
    #[test_case(r"/a\04", r"/a\04"; "a short sequence is kept")]
    #[test_case(r"/a\777", r"/a\777"; "more than a byte is kept")]
    fn octal_escapes_are_resolved(written: &str, expected: &str) {
        let line = format!("1 0 8:1 / {written} rw - ext4 /dev/root rw");
        assert_eq!(parse(line.as_bytes()).unwrap()[0].mount_point, Path::new(expected));
    }

    #[test_case(b"1 0 8:1 / /\xff rw - ext4 dev rw"; "a name that is not UTF-8")]
    #[test_case(b"1 0 8:1 / / rw -  - rw"; "an empty filesystem name")]
    #[test_case(b"1 0 8:1 / / rw - tmpfs  rw"; "an empty source")]
    fn odd_lines_are_accepted(line: &[u8]) {
        assert_eq!(parse(line).unwrap().len(), 1);
    }

    #[test_case("x 0 8:1 / / rw - ext4 dev rw"; "an id that is no number")]
    #[test_case("1 0 8:1 / / rw shared:1"; "no separator")]
    #[test_case("1 0 8:1 / / rw - ext4 dev"; "no filesystem options")]
    fn a_malformed_line_is_named(line: &str) {
        let error = parse(format!("{TMPFS}\n{line}\n").as_bytes()).unwrap_err();
        assert_eq!(error, Malformed { line: 2, text: line.to_owned() });
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop(parse(&bytes));
        }

        #[test]
        fn no_text_like_a_line_panics(line in r"([0-9]{1,3} ){2}0:1 [ /\\0-7a-z:,-]{0,60}") {
            drop(parse(line.as_bytes()));
        }
    }

    #[test_case("/v1/volumes/a/root/..1", true; "the place")]
    #[test_case("/v1/volumes/a/root/..1/sub/dir", true; "something below")]
    #[test_case("/v1/volumes/a/root/..1/sub//deleted", true; "something removed below")]
    #[test_case("/v1/volumes/a/root/..12", false; "a longer name")]
    #[test_case("/v1/volumes/aa/root/..1", false; "a longer name above")]
    #[test_case("/v1/volumes/a/root", false; "what holds it")]
    #[test_case("/", false; "everything")]
    fn a_mount_shows_a_place_and_what_is_below(root: &str, expected: bool) {
        let line = format!("1 0 8:1 {root} /mnt rw - ext4 /dev/root rw");
        let entry = &parse(line.as_bytes()).unwrap()[0];
        assert_eq!(entry.shows(Path::new("a/root/..1")), expected);
    }

    #[test]
    fn the_table_of_this_machine_is_understood() {
        assert_eq!(entry_of(Path::new("/proc")).unwrap().filesystem, "proc");
    }

    #[test]
    fn a_private_directory_is_refused_with_the_remedy() {
        in_private_namespace(|dir| {
            mount_tmpfs(dir);
            let below = dir.join("below");
            fs::create_dir(&below).unwrap();
            let text = require_shared(&below).unwrap_err().to_string();
            assert!(text.contains("mountPropagation: Bidirectional"), "{text}");
            set_propagation(dir, MsFlags::MS_SHARED);
            require_shared(&below).unwrap();
        });
    }
}
