//! A mounted volume against a plain directory with the same files.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    process::Command,
    thread,
};

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::fs::{OFlags, RawDir, SeekFrom, XattrFlags};

use super::{
    OWNERSHIP, at,
    mounted::{File as Described, Mounted, OPTIONS, UNASKED, file, mounted},
};
use crate::{units::Mode, view::fuse::FuseOptions, volume::Ownership};

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

fn files() -> Vec<Described> {
    let big = (3 << 20) + 777;
    let mut files = vec![
        file("empty", ""),
        file("a/b/c/deep", "deep"),
        file("a-b", "after a in the order of bytes"),
        file("big", bytes(1, big)),
        file("page", bytes(2, 4096)),
        file("with space \u{e9}\n", "odd name"),
    ];
    files.extend((0..300).map(|n| file(&format!("many/file-{n:03}"), format!("content {n}"))));
    files
}

/// Writes the files to a plain directory, with the ownership of the volume.
fn plain(root: &Path, files: &[Described], ownership: &Ownership) {
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(at(1_000)).unwrap();
    }
    own(root, ownership);
}

fn own(path: &Path, ownership: &Ownership) {
    let is_directory = path.is_dir();
    if is_directory {
        for entry in fs::read_dir(path).unwrap() {
            own(&entry.unwrap().path(), ownership);
        }
    }
    let mode = if is_directory { ownership.dir_mode } else { ownership.file_mode };
    fs::set_permissions(path, fs::Permissions::from_mode(mode.bits().into())).unwrap();
    chown(path, Some(ownership.uid), Some(ownership.gid)).unwrap();
}

/// Everything that `stat(2)` and reading tell, by path.
fn walk(root: &Path, path: &Path, found: &mut BTreeMap<String, String>) {
    let told = fs::symlink_metadata(path).unwrap();
    let (mut content, mut time) = (Vec::new(), (0, 0));
    if told.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.file_type().unwrap(), entry.metadata().unwrap().file_type());
            walk(root, &entry.path(), found);
        }
    } else {
        content = fs::read(path).unwrap();
        time = (told.mtime(), told.mtime_nsec());
        assert_eq!(told.size(), content.len() as u64);
        assert_eq!(told.blocks(), told.size().div_ceil(512).next_multiple_of(blocks_of(path)));
    }
    let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let text = format!(
        "{:o} {}:{} links {} time {time:?} {}",
        told.mode(),
        told.uid(),
        told.gid(),
        told.nlink(),
        hex::encode(content)
    );
    assert!(found.insert(name, text).is_none(), "listed twice");
}

/// A tmpfs takes whole pages.
fn blocks_of(path: &Path) -> u64 {
    if path.components().any(|part| part.as_os_str() == "plain") { 8 } else { 1 }
}

fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

/// Where the kernel asks before it opens a file, and where it opens it by itself.
fn in_both_ways(files: &[Described], test: impl Fn(&Mounted) + Sync) {
    for options in [OPTIONS, UNASKED] {
        mounted(files, options, &test);
    }
}

/// The plain directory beside the volume.
fn oracle(mounted: &Mounted, files: &[Described], ownership: &Ownership) -> std::path::PathBuf {
    let root = mounted.path.with_file_name("plain");
    plain(&root, files, ownership);
    root
}

#[test]
fn a_volume_looks_like_a_plain_directory() {
    let files = files();
    in_both_ways(&files, |mounted| {
        let oracle = oracle(mounted, &files, &OWNERSHIP);
        let (wanted, found) = (tree(&oracle), tree(&mounted.path));
        assert_eq!(found.len(), files.len() + 5);
        assert!(found == wanted, "{:?}", found.iter().find(|(k, v)| wanted.get(*k) != Some(v)));
        // Once more, from what the kernel remembers.
        assert!(tree(&mounted.path) == wanted);
    });
}

#[test]
fn reads_at_random_places_are_those_of_a_plain_file() {
    let files = files();
    in_both_ways(&files, |mounted| {
        let oracle = oracle(mounted, &files, &OWNERSHIP);
        let mut random = StdRng::seed_from_u64(7);
        for name in ["big", "page", "empty", "a-b"] {
            let (ours, plain) =
                (File::open(mounted.at(name)).unwrap(), File::open(oracle.join(name)).unwrap());
            let length = plain.metadata().unwrap().len();
            for _ in 0..150 {
                let offset = random.random_range(0..length + 10_000);
                let size = random.random_range(0..400_000);
                let (mut a, mut b) = (vec![0; size], vec![1; size]);
                let (read, wanted) =
                    (read_all(&ours, &mut a, offset), read_all(&plain, &mut b, offset));
                assert_eq!(read, wanted, "{name} at {offset}");
                assert!(a[..read] == b[..wanted], "{name} at {offset}");
            }
        }
    });
}

/// One call reads all that there is: nothing is short inside of a file.
fn read_all(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    file.read_at(buffer, offset).unwrap()
}

#[test]
fn a_program_runs_from_a_volume() {
    let shell = fs::read("/bin/sh").unwrap();
    let ownership = Ownership { file_mode: Mode::from_bits(0o555).unwrap(), ..OWNERSHIP };
    let options = FuseOptions { ownership, ..OPTIONS };
    mounted(&[file("bin/sh", shell)], options, |mounted| {
        let output =
            Command::new(mounted.at("bin/sh")).args(["-c", "echo $((6 * 7))"]).output().unwrap();
        assert_eq!(output.stdout, b"42\n");
    });
}

/// The names of a directory from a position on, each with the position after it.
fn names(directory: &File, from: u64) -> Vec<(String, u64)> {
    rustix::fs::seek(directory, SeekFrom::Start(from)).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    let mut lines = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(line) = lines.next() {
        let line = line.unwrap();
        names.push((line.file_name().to_str().unwrap().to_owned(), line.next_entry_cookie()));
    }
    names
}

#[test]
fn a_listing_goes_on_from_every_position() {
    let files = files();
    in_both_ways(&files, |mounted| {
        let directory = File::open(mounted.at("many")).unwrap();
        let all = names(&directory, 0);
        assert_eq!(all.len(), 302);
        assert_eq!((all[0].0.as_str(), all[1].0.as_str()), (".", ".."));
        for (index, (_, position)) in all.iter().enumerate().step_by(23) {
            assert_eq!(names(&directory, *position), all[index + 1..]);
            let other = File::open(mounted.at("many")).unwrap();
            assert_eq!(names(&other, *position), all[index + 1..]);
        }
        assert!(names(&directory, 1_000_000).is_empty());
    });
}

#[test]
fn nothing_can_be_written() {
    in_both_ways(&[file("file", "content"), file("dir/file", "x")], |mounted| {
        let at = |path: &str| mounted.at(path);
        let open = |path: &str, options: &mut fs::OpenOptions| options.open(at(path)).map(drop);
        let written: [(&str, io::Result<()>); 15] = [
            ("write", open("file", File::options().write(true))),
            ("append", open("file", File::options().append(true))),
            ("truncate", open("file", File::options().write(true).truncate(true))),
            ("create", File::create(at("new")).map(drop)),
            ("mkdir", fs::create_dir(at("new"))),
            ("unlink", fs::remove_file(at("file"))),
            ("rmdir", fs::remove_dir(at("dir"))),
            ("rename", fs::rename(at("file"), at("new"))),
            ("symlink", symlink("file", at("new"))),
            ("link", fs::hard_link(at("file"), at("new"))),
            ("chmod", fs::set_permissions(at("file"), fs::Permissions::from_mode(0o777))),
            ("chown", chown(at("file"), Some(0), None)),
            ("utimes", File::open(at("file")).unwrap().set_modified(super::at(1))),
            (
                "mkfifo",
                nix::unistd::mkfifo(&at("new"), nix::sys::stat::Mode::S_IRWXU)
                    .map_err(io::Error::from),
            ),
            (
                "setxattr",
                rustix::fs::setxattr(at("file"), "user.x", b"1", XattrFlags::empty())
                    .map_err(io::Error::from),
            ),
        ];
        for (call, answer) in written {
            let errno = answer.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(Errno::EROFS as i32), "{call}");
        }
        assert_eq!(mounted.read("file"), "content");
    });
}

#[test]
fn what_is_missing_is_missing_and_not_remembered() {
    in_both_ways(&[file("dir/file", "x")], |mounted| {
        for path in ["missing", "dir/missing", "missing/file"] {
            let error = fs::metadata(mounted.at(path)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::ENOENT as i32), "{path}");
        }
        let error = fs::metadata(mounted.at("dir/file/below")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENOTDIR as i32));
        mounted.show(&[file("dir/file", "x"), file("missing/file", "y")]);
        assert_eq!(mounted.read("missing/file"), "y");
    });
}

#[test]
fn the_kernel_checks_permissions() {
    // Files 0440, directories 0550, of 185:1000.
    in_both_ways(&[file("dir/file", "x")], |mounted| {
        let read_as = |uid: u32, gid: u32| {
            thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    setfsgid(Gid::from_raw(gid));
                    setfsuid(Uid::from_raw(uid));
                    fs::read(mounted.at("dir/file")).map_err(|error| error.kind())
                });
                reading.join().unwrap()
            })
        };
        assert_eq!(read_as(185, 5), Ok(b"x".to_vec()));
        assert_eq!(read_as(5, 1000), Ok(b"x".to_vec()));
        assert_eq!(read_as(5, 5), Err(io::ErrorKind::PermissionDenied));
    });
}

#[test]
fn a_file_system_has_the_size_of_its_listing() {
    in_both_ways(&files(), |mounted| {
        let found = nix::sys::statvfs::statvfs(&mounted.path).unwrap();
        let bytes: usize = files().iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(found.blocks(), (bytes as u64).div_ceil(4096));
        assert_eq!((found.blocks_available(), found.files_free()), (0, 0));
        assert_eq!((found.files(), found.name_max()), (files().len() as u64 + 5, 255));
    });
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, rustix::io::Errno> {
    let mut buffer = [0; 1024];
    let length = rustix::fs::getxattr(path, name, &mut buffer)?;
    Ok(buffer[..length].to_vec())
}

#[test]
fn extended_attributes_tell_the_object_version_on_request() {
    let options = FuseOptions { xattrs: true, ..OPTIONS };
    mounted(&[file("dir/file", "x")], options, |mounted| {
        let path = mounted.at("dir/file");
        assert_eq!(xattr(&path, "user.s3view.key").unwrap(), b"data/dir/file");
        assert_eq!(xattr(&path, "user.s3view.etag").unwrap().len(), 32);
        for (path, name) in [
            ("dir/file", "user.s3view.version-id"),
            ("dir/file", "user.other"),
            ("dir", "user.s3view.key"),
        ] {
            assert_eq!(xattr(&mounted.at(path), name), Err(rustix::io::Errno::NODATA));
        }
        let mut buffer = [0; 1024];
        let length = rustix::fs::listxattr(&path, &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length], b"user.s3view.etag\0user.s3view.key\0");
        let mut small = [0; 3];
        let error = rustix::fs::getxattr(&path, "user.s3view.key", &mut small[..]).unwrap_err();
        assert_eq!(error, rustix::io::Errno::RANGE);
    });
}

#[test]
fn extended_attributes_are_not_there_unless_asked_for() {
    in_both_ways(&[file("file", "x")], |mounted| {
        let error = xattr(&mounted.at("file"), "user.s3view.key").unwrap_err();
        assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
    });
}

/// Flags are passed on as they are, so that the import is one for both.
#[test]
fn a_file_opened_for_direct_reads_has_the_same_bytes() {
    let files = files();
    in_both_ways(&files, |mounted| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(mounted.at("page"), flags, rustix::fs::Mode::empty()).unwrap();
        let mut buffer = vec![0; 5000];
        assert_eq!(File::from(fd).read_at(&mut buffer, 0).unwrap(), 4096);
        assert!(buffer[..4096] == bytes(2, 4096));
    });
}
