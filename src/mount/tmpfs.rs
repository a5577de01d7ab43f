//! The store's tmpfs: mounted once, adopted after every restart.
//!
//! Volumes are bind mounts of directories in it, so it must never be mounted anew while one of
//! them is published: a second tmpfs would hide, not replace, the first. What is there is adopted,
//! and resized to what is configured.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::error::{Failed, MountError};
use super::point::is_mount_point;
use super::{machine, selinux, table};

/// Views must not grant privileges; native libraries in them may be code, so exec stays on.
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Whether content may leave memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapPolicy {
    /// `store.memory.allowSwap: false`: never.
    Refuse,
    /// `store.memory.allowSwap: true`: the user accepts it.
    Allow,
}

/// What the tmpfs should be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TmpfsOptions {
    /// Size in bytes; the kernel rounds up to whole pages. 0 counts as 1: to the kernel 0 would
    /// mean that there is no limit.
    pub size_bytes: u64,
    /// Number of files, directories and links, the root directory included; 0 as above.
    pub inodes: u64,
    /// What to do where the kernel cannot keep a tmpfs out of swap.
    pub swap: SwapPolicy,
}

impl TmpfsOptions {
    /// The limits as mount(2) takes them. Only these may be given on a remount.
    fn limits(&self) -> String {
        format!("size={},nr_inodes={}", self.size_bytes.max(1), self.inodes.max(1))
    }
}

/// A tmpfs that is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tmpfs {
    /// Whether it was mounted now, and is empty therefore.
    pub fresh: bool,
    /// Whether the kernel keeps it out of swap.
    pub no_swap: bool,
}

/// Mounts a tmpfs at the directory `dir`, or adopts and resizes the one that is there.
///
/// Mode 0700, nosuid, nodev, and noswap where the kernel has it (Linux 6.4+, in the initial user
/// namespace).
///
/// # Errors
/// `Swap` as [`check_swap`]; `NotTmpfs` when something else is mounted at `dir`; `TooSmall` when
/// more is in use than configured; `System` else. Nothing is changed then.
pub fn mount_or_adopt(dir: &Path, options: &TmpfsOptions) -> Result<Tmpfs, MountError> {
    // A mount follows symlinks, the question does not: asked of a symlink it would stack mounts.
    let dir = &dir.canonicalize().map_err(|error| Failed::new("resolve", error).at(dir))?;
    if is_mount_point(dir)? { adopt(dir, options) } else { mount_fresh(dir, options) }
}

/// Refuses a tmpfs that is not kept out of swap while swap is on and not allowed.
///
/// Swap may be turned on at any time, so this is asked again before content is put there.
///
/// # Errors
/// `Swap`; `System` if /proc/swaps cannot be read.
pub fn check_swap(no_swap: bool, policy: SwapPolicy) -> Result<(), MountError> {
    let safe = no_swap || policy == SwapPolicy::Allow || !machine::has_swap()?;
    if safe { Ok(()) } else { Err(MountError::Swap) }
}

fn mount_fresh(dir: &Path, options: &TmpfsOptions) -> Result<Tmpfs, MountError> {
    let failed = |errno| Failed::new("mount a tmpfs at", errno).at(dir);
    // Inode numbers tell blobs apart after a restart, and must not come again after 2^32 files.
    let label = selinux::mount_option();
    let data = format!("mode=0700,inode64,{}{label}", options.limits());
    let no_swap = match mount_with(dir, FLAGS, &format!("{data},noswap")) {
        Ok(()) => true,
        // The same answer for an unknown option and for one that this user namespace may not use.
        Err(Errno::EINVAL) => {
            check_swap(false, options.swap)?;
            mount_with(dir, FLAGS, &data).map_err(failed)?;
            false
        }
        Err(errno) => return Err(failed(errno)),
    };
    Ok(Tmpfs { fresh: true, no_swap })
}

fn adopt(dir: &Path, options: &TmpfsOptions) -> Result<Tmpfs, MountError> {
    let found = statfs(dir).map_err(|errno| Failed::new("inspect", errno).at(dir))?;
    if found.filesystem_type() != TMPFS_MAGIC {
        return Err(MountError::NotTmpfs { path: dir.to_owned() });
    }
    let entry = table::entry_of(dir)?;
    if selinux::is_missing(|option| entry.has_option(option)) {
        tracing::warn!(
            path = %dir.display(),
            "this tmpfs was mounted without an SELinux label, so that containers may not read it; \
             unpublish its volumes and unmount it"
        );
    }
    let no_swap = entry.has_option("noswap");
    check_swap(no_swap, options.swap)?;
    resize(dir, options)?;
    Ok(Tmpfs { fresh: false, no_swap })
}

fn resize(dir: &Path, options: &TmpfsOptions) -> Result<(), MountError> {
    let now = statvfs(dir).map_err(|errno| Failed::new("inspect", errno).at(dir))?;
    let page = now.fragment_size();
    let (pages, inodes) = (options.size_bytes.max(1).div_ceil(page), options.inodes.max(1));
    if (pages, inodes) == (now.blocks(), now.files()) {
        return Ok(());
    }
    let too_small =
        |what, wanted, used| Err(MountError::TooSmall { path: dir.to_owned(), what, wanted, used });
    let used_pages = now.blocks() - now.blocks_free();
    let used_inodes = now.files() - now.files_free();
    if pages < used_pages {
        return too_small("size in bytes", options.size_bytes, used_pages * page);
    }
    if inodes < used_inodes {
        return too_small("number of inodes", options.inodes, used_inodes);
    }
    mount_with(dir, FLAGS | MsFlags::MS_REMOUNT, &options.limits())
        .map_err(|errno| Failed::new("resize the tmpfs at", errno).at(dir))
}

fn mount_with(dir: &Path, flags: MsFlags, data: &str) -> nix::Result<()> {
    mount(Some("s3view"), dir, Some("tmpfs"), flags, Some(data))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failure::FailureKind;
    use crate::mount::scratch::in_private_namespace;
    use crate::mount::space::{Space, space};

    const OPTIONS: TmpfsOptions =
        TmpfsOptions { size_bytes: 1 << 20, inodes: 100, swap: SwapPolicy::Allow };

    fn resized(size_bytes: u64, inodes: u64) -> TmpfsOptions {
        TmpfsOptions { size_bytes, inodes, ..OPTIONS }
    }

    #[test]
    fn a_fresh_tmpfs_has_the_limits_mode_and_flags() {
        in_private_namespace(|dir| {
            let tmpfs = mount_or_adopt(dir, &OPTIONS).unwrap();
            assert!(tmpfs.fresh);
            let Space { total_bytes, available_bytes, total_inodes, .. } = space(dir).unwrap();
            assert_eq!((total_bytes, available_bytes, total_inodes), (1 << 20, 1 << 20, 100));
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
            let entry = table::entry_of(dir).unwrap();
            assert!(entry.has_option("nosuid") && entry.has_option("nodev"));
            assert!(entry.has_option("inode64"));
            assert!(!entry.has_option("noexec"));
            assert_eq!(entry.has_option("noswap"), tmpfs.no_swap);
        });
    }

    #[test]
    fn an_existing_tmpfs_is_adopted_with_its_content() {
        in_private_namespace(|dir| {
            let mounted = mount_or_adopt(dir, &OPTIONS).unwrap();
            fs::write(dir.join("blob"), "content").unwrap();
            let adopted = mount_or_adopt(dir, &OPTIONS).unwrap();
            assert_eq!(adopted, Tmpfs { fresh: false, ..mounted });
            assert_eq!(fs::read_to_string(dir.join("blob")).unwrap(), "content");
        });
    }

    #[test]
    fn a_tmpfs_behind_a_symlink_is_adopted_not_covered() {
        in_private_namespace(|dir| {
            let (point, link) = (dir.join("point"), dir.join("link"));
            fs::create_dir(&point).unwrap();
            std::os::unix::fs::symlink(&point, &link).unwrap();
            assert!(mount_or_adopt(&link, &OPTIONS).unwrap().fresh);
            assert!(!mount_or_adopt(&link, &OPTIONS).unwrap().fresh);
        });
    }

    #[test]
    fn an_adopted_tmpfs_gets_the_new_limits_and_keeps_its_flags() {
        in_private_namespace(|dir| {
            mount_or_adopt(dir, &OPTIONS).unwrap();
            let before = table::entry_of(dir).unwrap();
            mount_or_adopt(dir, &resized(8 << 20, 400)).unwrap();
            let Space { total_bytes, total_inodes, .. } = space(dir).unwrap();
            assert_eq!((total_bytes, total_inodes), (8 << 20, 400));
            let after = table::entry_of(dir).unwrap();
            assert_eq!((after.id, after.options), (before.id, before.options));
        });
    }

    #[test]
    fn less_than_what_is_in_use_is_refused_with_both_figures() {
        in_private_namespace(|dir| {
            mount_or_adopt(dir, &OPTIONS).unwrap();
            fs::write(dir.join("blob"), vec![1; 64 << 10]).unwrap();
            let error = mount_or_adopt(dir, &resized(4096, 100)).unwrap_err();
            assert_eq!(error.kind(), FailureKind::Precondition);
            let text = error.to_string();
            assert!(text.contains("cannot be 4096, because 65536 are in use"), "{text}");
            let text = mount_or_adopt(dir, &resized(1 << 20, 1)).unwrap_err().to_string();
            assert!(text.contains("number of inodes"), "{text}");
        });
    }

    #[test]
    fn limits_of_zero_are_not_the_absence_of_limits() {
        in_private_namespace(|dir| {
            mount_or_adopt(dir, &resized(0, 0)).unwrap();
            let Space { total_bytes, free_inodes, .. } = space(dir).unwrap();
            assert!(total_bytes > 0 && total_bytes <= 64 << 10);
            assert_eq!(free_inodes, 0);
        });
    }

    #[test]
    fn another_filesystem_at_the_place_is_refused() {
        in_private_namespace(|dir| {
            let proc = Path::new("/proc");
            mount(Some(proc), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let error = mount_or_adopt(dir, &OPTIONS).unwrap_err();
            assert!(matches!(error, MountError::NotTmpfs { .. }), "{error}");
        });
    }

    #[test]
    fn swap_is_no_matter_where_it_is_allowed_or_kept_out() {
        check_swap(true, SwapPolicy::Refuse).unwrap();
        check_swap(false, SwapPolicy::Allow).unwrap();
        let refused = check_swap(false, SwapPolicy::Refuse).is_err();
        assert_eq!(refused, machine::has_swap().unwrap());
    }
}
