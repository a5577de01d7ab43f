//! A mount namespace per test, so that nothing a test mounts is seen, or left, outside of it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with an empty directory (the root of a private tmpfs) in a mount namespace of its
/// own. Skips loudly where the machine does not permit one.
pub(crate) fn in_private_namespace(test: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    in_new_thread(|| match unshare(CloneFlags::CLONE_NEWNS) {
        Ok(()) => {
            set_propagation(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            // An extra level, because a test may unmount what it is given.
            mount_tmpfs(dir.path());
            let playground = dir.path().join("playground");
            fs::create_dir(&playground).unwrap();
            test(&playground);
        }
        Err(Errno::EPERM) => eprintln!("SKIPPED: mount tests need CAP_SYS_ADMIN"),
        Err(errno) => panic!("unshare: {errno}"),
    });
}

/// Runs `test` in a copy of the calling thread's mount namespace, on a thread of its own.
pub(crate) fn in_peer_namespace(test: impl FnOnce() + Send) {
    in_new_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        test();
    });
}

fn in_new_thread(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(test).join() {
            resume_unwind(panic);
        }
    });
}

pub(crate) fn mount_tmpfs(point: &Path) {
    mount(Some("test"), point, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

pub(crate) fn set_propagation(point: &Path, flags: MsFlags) {
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>).unwrap();
}

/// Mounts a FUSE filesystem whose server hangs, and dies when the result is dropped.
pub(crate) fn mount_fuse(point: &Path) -> Option<File> {
    let device = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return None;
        }
    };
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("test"), point, Some("fuse"), MsFlags::empty(), Some(data.as_str())).unwrap();
    Some(device)
}
