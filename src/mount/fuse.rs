//! FUSE mounts: made by us with a descriptor of ours, so that no library mounts or unmounts.
//!
//! The connection to the server is the open `/dev/fuse`: it lives as long as any descriptor of it
//! does, in whatever process, and dies with the last one. A connection that must end earlier, while
//! descriptors or files are still open, is aborted through the `fusectl` file system.
//! Source: kernel `filesystems/fuse/fuse.rst`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::error::{Failed, MountError};
use super::{kernel, point, selinux};

const DEVICE: &str = "/dev/fuse";
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Never writable, even before the server answers; and no privileges by a file.
const FLAGS: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);

/// The connection of one FUSE mount to its server.
#[derive(Debug)]
pub struct FuseDevice {
    fd: OwnedFd,
    connection: FuseConnection,
}

/// The kernel's name of a connection, valid while the mount exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FuseConnection(u32);

impl FuseDevice {
    /// The descriptor that a server reads requests from.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The name under which it can be aborted.
    pub fn connection(&self) -> FuseConnection {
        self.connection
    }
}

impl FuseConnection {
    /// The connection of that number, as [`FuseConnection::number`] gave it.
    pub fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number, to be kept across a restart.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Ends it: whoever waits for an answer gets an error, now and later. One that is gone is fine.
    ///
    /// The last resort for a server that hangs.
    ///
    /// # Errors
    /// `System`: `Precondition` without `CAP_SYS_ADMIN`.
    ///
    /// # Blocking
    /// Does not wait for the server.
    pub fn abort(self) -> Result<(), MountError> {
        let file = Path::new(CONNECTIONS).join(self.0.to_string()).join("abort");
        // Containers often see the directory without what is mounted there on the node.
        let answer = match fs::write(&file, "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => write_in_private(&file),
            answer => answer,
        };
        match answer {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => {
                answer.map_err(|error| Failed::new("abort the FUSE connection by", error).at(&file))
            }
        }
    }
}

/// Makes the descriptor `place` lead to what `fd` leads to, whatever it led to: its owner notices
/// nothing. Close-on-exec is set.
///
/// # Errors
/// What `dup3(2)` answers; then nothing has changed.
pub fn put_in_place(fd: impl AsFd, place: impl AsFd) -> io::Result<()> {
    Ok(kernel::put_in_place(fd.as_fd(), place.as_fd())?)
}

/// Whether the file system behind a descriptor of `/dev/fuse` is gone: unmounted, or its connection
/// aborted. Nothing is asked of it.
///
/// # Errors
/// What `poll(2)` answers.
pub fn has_ended(device: impl AsFd) -> io::Result<bool> {
    Ok(kernel::has_hung_up(device.as_fd())?)
}

/// Gives up a file that was registered to be read by the kernel alone. Files that are open with it
/// can be read on; no other open can lead to it. One that is unknown is fine.
///
/// # Errors
/// What the kernel answers.
pub fn close_backing(device: impl AsFd, id: u32) -> io::Result<()> {
    match kernel::close_backing(device.as_fd(), id) {
        Err(Errno::ENOENT) => Ok(()),
        answer => Ok(answer?),
    }
}

/// Writes to a control file that only a mount namespace of its own can reach.
fn write_in_private(file: &Path) -> io::Result<()> {
    thread::scope(|scope| {
        let writing = thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            let (kind, flags) = (Some("fusectl"), MsFlags::empty());
            mount(Some("s3view"), CONNECTIONS, kind, flags, None::<&str>)?;
            fs::write(file, "1")
        });
        writing?.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Opens a file and closes it, on a thread of its own that has no other descriptor.
///
/// Nobody can be killed while a server owes him the answer to a close. But if this is the server's
/// process, and no other has the connection, then it ends with the last descriptor that the other
/// threads had, and so does the wait.
///
/// # Errors
/// `ENOSYS` before Linux 5.9; and why the file cannot be opened.
///
/// # Blocking
/// Until the server answers.
pub(super) fn open_and_close(file: &Path) -> io::Result<()> {
    thread::scope(|scope| {
        let opening = thread::Builder::new().spawn_scoped(scope, || {
            kernel::close_all_of_this_thread()?;
            File::open(file).map(drop)
        });
        opening?.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Mounts a FUSE file system on top of what `place` leads to; nobody serves it yet.
///
/// All users may reach it, and the kernel checks their permissions. `max_read` is the most bytes of
/// one read request.
pub(super) fn mount_at(place: &Path, max_read: u32) -> Result<OwnedFd, Failed> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| Failed::new("open /dev/fuse to mount", error))?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,\
         max_read={max_read}{}",
        device.as_raw_fd(),
        selinux::mount_option()
    );
    mount(Some("s3view"), place, Some("fuse.s3view"), FLAGS, Some(data.as_str()))
        .map_err(|errno| Failed::new("mount a FUSE file system at", errno))?;
    Ok(device.into())
}

/// The device of the FUSE file system that was just mounted at `target`; without it, that goes.
pub(super) fn device_at(fd: OwnedFd, target: &Path) -> Result<FuseDevice, Failed> {
    match kernel::statx(target) {
        Ok(found) => Ok(FuseDevice { fd, connection: FuseConnection(found.device_minor) }),
        Err(errno) => {
            point::detach_all(target)?;
            Err(Failed::new("inspect", errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::mount::point::unmount_all;
    use crate::mount::scratch::in_private_namespace;
    use crate::mount::table;

    fn mounted(dir: &Path) -> Option<FuseDevice> {
        if !Path::new(DEVICE).exists() {
            eprintln!("SKIPPED: there is no /dev/fuse");
            return None;
        }
        Some(device_at(mount_at(dir, 1 << 20).unwrap(), dir).unwrap())
    }

    #[test]
    fn a_fuse_mount_is_read_only_and_open_to_all() {
        in_private_namespace(|dir| {
            let Some(device) = mounted(dir) else { return };
            let entry = table::entry_of(dir).unwrap();
            assert_eq!(entry.filesystem, "fuse.s3view");
            for option in
                ["ro", "nosuid", "nodev", "allow_other", "default_permissions", "max_read=1048576"]
            {
                assert!(entry.has_option(option), "{option} is missing: {entry:?}");
            }
            drop(device);
            unmount_all(dir).unwrap();
        });
    }

    #[test]
    fn an_aborted_connection_answers_everybody_with_an_error() {
        in_private_namespace(|dir| {
            let Some(device) = mounted(dir) else { return };
            let connection = FuseConnection::from_number(device.connection().number());
            thread::scope(|scope| {
                let waiting = scope.spawn(|| fs::read_dir(dir).map(drop));
                thread::yield_now();
                connection.abort().unwrap();
                let error = waiting.join().unwrap().unwrap_err();
                let kinds = [ErrorKind::NotConnected, ErrorKind::ConnectionAborted];
                assert!(kinds.contains(&error.kind()), "{error}");
            });
            assert_eq!(unmount_all(dir).unwrap(), 1);
            drop(device);
            connection.abort().unwrap();
        });
    }
}
