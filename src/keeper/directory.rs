//! The socket's directory: 0700, so that nobody else can even try to connect.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
};

use super::KeeperError;

/// Makes the directory of `socket`, or sees to its mode.
///
/// A directory that exists is tightened only where it is our own and holds nothing but the socket:
/// what Kubernetes makes for a hostPath is 0755, and `/run` must stay as it is.
///
/// # Errors
/// The directory is not ours alone and is not made so; the system refuses.
///
/// # Blocking
/// A few system calls.
pub(super) fn prepare(socket: &Path) -> Result<(), KeeperError> {
    let directory = socket.parent().unwrap_or(Path::new("/"));
    let failed = |error| KeeperError::Prepare { path: directory.to_owned(), error };
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let found = fs::symlink_metadata(directory).map_err(failed)?;
    let owner = rustix::process::geteuid().as_raw();
    let refused = |reason| KeeperError::Directory { path: directory.to_owned(), owner, reason };
    if !found.is_dir() {
        return Err(refused("it is no directory"));
    }
    if found.uid() != owner {
        return Err(refused("it is another user's"));
    }
    // Nothing for group and others.
    if found.mode().trailing_zeros() >= 6 {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        if Some(&*entry.map_err(failed)?.file_name()) != socket.file_name() {
            return Err(refused("others may enter it, and it holds more than the socket"));
        }
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed)?;
    tracing::info!(directory = %directory.display(), "closed the directory to other users");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_missing_directory_is_made_for_its_owner_alone() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("s3view");
        prepare(&directory.join("keeper.sock")).unwrap();
        assert_eq!(mode(&directory), 0o700);
        prepare(&directory.join("keeper.sock")).unwrap();
        assert!(prepare(&top.path().join("a/b/keeper.sock")).is_err(), "one directory, not a path");
    }

    #[test]
    fn an_open_directory_is_closed_if_it_is_the_sockets_own() {
        let top = tempfile::tempdir().unwrap();
        fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(top.path().join("keeper.sock"), "").unwrap();
        prepare(&top.path().join("keeper.sock")).unwrap();
        assert_eq!(mode(top.path()), 0o700);
    }

    #[test]
    fn a_directory_of_others_stays_as_it_is() {
        let top = tempfile::tempdir().unwrap();
        fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(top.path().join("other"), "").unwrap();
        let error = prepare(&top.path().join("keeper.sock")).unwrap_err();
        assert!(error.to_string().contains("0700"), "{error}");
        assert_eq!(mode(top.path()), 0o755);
    }
}
