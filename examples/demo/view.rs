//! What a pod sees at its target path.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, Result, bail};
use s3view::mount::table;

use crate::check;

/// A file as its reader sees it: through the symlinks of the view.
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) inode: (u64, u64),
    pub(crate) content: Vec<u8>,
}

impl fmt::Display for Seen {
    /// As `ls -ln` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uid, gid) = self.owner;
        let bit =
            |(place, letter)| if self.mode & (0o400_u32 >> place) == 0 { '-' } else { letter };
        let permissions: String = "rwxrwxrwx".chars().enumerate().map(bit).collect();
        write!(f, "-{permissions}  {uid}:{gid} {:>6}  {}", self.content.len(), self.name)
    }
}

/// The files at a target path by name; names that begin with `..` are the view's own.
pub(crate) fn files(target: &Path) -> Result<Vec<Seen>> {
    let cannot = || format!("failed to look at {}", target.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(target).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") {
            files.push(file(&entry.path(), name).with_context(cannot)?);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn file(path: &Path, name: String) -> io::Result<Seen> {
    let metadata = fs::metadata(path)?;
    Ok(Seen {
        name,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        inode: (metadata.dev(), metadata.ino()),
        content: fs::read(path)?,
    })
}

/// Whether the keystore at a target path is this one.
pub(crate) fn shows(target: &Path, keystore: &[u8]) -> bool {
    fs::read(target.join("keystore.jks")).is_ok_and(|content| content == keystore)
}

/// Where the files are, which must be in memory.
pub(crate) fn medium(target: &Path) -> Result<&'static str> {
    let mount = table::entry_of(target)?;
    check("the file system", "tmpfs", &mount.filesystem)?;
    Ok(if mount.has_option("noswap") {
        "They are in memory only (tmpfs, noswap)"
    } else {
        "They are in memory (tmpfs).\n    \
         (Not noswap, which needs Linux 6.4 and the initial user namespace: allowSwap is set)"
    })
}

/// Tries to change the files at `target` in every way, and tells what was tried and answered.
///
/// # Errors
/// Where anything but "read-only file system" was the answer.
pub(crate) fn refusals(target: &Path, name: &str) -> Result<Vec<(String, io::Error)>> {
    let (file, new) = (target.join(name), target.join("new.jks"));
    let writable = fs::Permissions::from_mode(0o666);
    let attempts = [
        (format!("write to {name}"), fs::write(&file, "x")),
        (format!("chmod 0666 {name}"), fs::set_permissions(&file, writable)),
        (format!("remove {name}"), fs::remove_file(&file)),
        ("create new.jks".to_owned(), fs::write(&new, "x")),
    ];
    let mut refusals = Vec::new();
    for (attempt, outcome) in attempts {
        match outcome {
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                refusals.push((attempt, error));
            }
            other => bail!("expected EROFS for root's attempt to {attempt}, got {other:?}"),
        }
    }
    Ok(refusals)
}
