//! Facts about the machine that decide what may be mounted: the boot, the memory, the swap.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::{
    prctl::set_dumpable,
    resource::{Resource, getrlimit, setrlimit},
};

use super::error::{Failed, MountError};
use super::table::{self, Entry};

/// The memory that this process's control groups allow, in bytes: the smallest limit from its own
/// group up to the topmost one that is visible. Pages of a tmpfs count against it.
///
/// `None` without a limit, or where control groups cannot be read.
pub fn memory_limit() -> Option<u64> {
    let membership = read("/proc/thread-self/cgroup").ok()?;
    let mounts = table::mounts().ok()?;
    mounts.iter().filter_map(|mount| limit_below(mount, &membership)).min()
}

/// Keeps secrets and the content of tmpfs views out of core files, on disk or in a pipe.
///
/// # Errors
/// What prctl(2) or setrlimit(2) answers.
pub fn forbid_core_dumps() -> std::io::Result<()> {
    set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Raises the number of descriptors that this process may open to what the system allows it:
/// container runtimes start processes with far less.
///
/// # Errors
/// What setrlimit(2) answers.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Whether pages may leave memory: whether any swap area, zram included, is in use.
///
/// # Errors
/// `System` if /proc is not there.
pub(super) fn has_swap() -> Result<bool, MountError> {
    // A kernel without swap support has no such file.
    let path = Path::new("/proc/swaps");
    match fs::read_to_string(path) {
        Ok(swaps) => Ok(lists_swap(&swaps)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failed::new("read", error).at(path)),
    }
}

/// The first line is a header.
fn lists_swap(swaps: &str) -> bool {
    swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

fn read(path: &str) -> Result<String, MountError> {
    fs::read_to_string(path).map_err(|error| Failed::new("read", error).at(Path::new(path)))
}

/// The smallest memory limit that a mounted hierarchy sets for a process with this `membership`
/// (the content of its cgroup file).
fn limit_below(mount: &Entry, membership: &str) -> Option<u64> {
    let (controller, file) = match mount.filesystem.as_str() {
        "cgroup2" => ("", "memory.max"),
        "cgroup" if mount.has_option("memory") => ("memory", "memory.limit_in_bytes"),
        _ => return None,
    };
    let group = group_of(controller, membership)?;
    // In a container the mount shows a part of the hierarchy, and the group may be named as the
    // node sees it: then what the mount shows is our own group.
    let below = Path::new(group).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let group: PathBuf = mount.mount_point.join(below);
    let upwards = group.ancestors().take_while(|dir| dir.starts_with(&mount.mount_point));
    upwards.filter_map(|dir| limit_in(&dir.join(file))).min()
}

/// The path in a line `id:controllers:path`; version 2 has no controllers there.
fn group_of<'a>(controller: &str, membership: &'a str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        controllers.split(',').any(|it| it == controller).then_some(group)
    })
}

/// Version 2 writes `max` where there is no limit, version 1 the largest multiple of a page.
fn limit_in(file: &Path) -> Option<u64> {
    const UNLIMITED: u64 = 1 << 62;
    let limit = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < UNLIMITED).then_some(limit)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("Filename\tType\tSize\tUsed\tPriority\n", false)]
    #[test_case("Filename\tType\n/dev/zram0 partition 1 0 5\n", true)]
    #[test_case("", false)]
    fn swap_is_on_when_an_area_is_listed(swaps: &str, expected: bool) {
        assert_eq!(lists_swap(swaps), expected);
    }

    /// A hierarchy with limits at three levels, the middle one the smallest.
    fn hierarchy(file: &str, unlimited: &str) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("pods/pod/plugin")).unwrap();
        for (group, limit) in
            [("", unlimited), ("pods", "900"), ("pods/pod", "500"), ("pods/pod/plugin", "700")]
        {
            fs::write(top.path().join(group).join(file), format!("{limit}\n")).unwrap();
        }
        top
    }

    fn mount(line: &str, top: &Path) -> Entry {
        let line = line.replace("TOP", top.to_str().unwrap());
        table::parse(line.as_bytes()).unwrap().remove(0)
    }

    const V1: &str = "1 0 0:1 / TOP rw - cgroup cgroup rw,memory";
    const V2: &str = "1 0 0:1 / TOP rw - cgroup2 cgroup2 rw";

    #[test_case("0::/pods/pod/plugin", Some(500); "the smallest on the way up")]
    #[test_case("0::/pods", Some(900); "groups below do not count")]
    #[test_case("0::/", None; "no limit")]
    #[test_case("0::/../elsewhere", None; "a group outside of what is visible")]
    #[test_case("4:memory:/pods", None; "a membership of the other version")]
    fn a_version_2_limit_is_found(membership: &str, expected: Option<u64>) {
        let top = hierarchy("memory.max", "max");
        assert_eq!(limit_below(&mount(V2, top.path()), membership), expected);
    }

    #[test_case("9:cpu,memory:/pods/pod/plugin\n0::/", Some(500))]
    #[test_case("9:memory:/", None)]
    fn a_version_1_limit_is_found(membership: &str, expected: Option<u64>) {
        let top = hierarchy("memory.limit_in_bytes", "9223372036854771712");
        assert_eq!(limit_below(&mount(V1, top.path()), membership), expected);
    }

    #[test_case("0::/pods/pod/plugin", Some(500); "named as the node sees it")]
    #[test_case("0::/", Some(900); "named in a cgroup namespace")]
    fn a_partly_mounted_hierarchy_is_understood(membership: &str, expected: Option<u64>) {
        let top = hierarchy("memory.max", "max");
        let line = V2.replace(" / TOP", " /pods TOP/pods");
        assert_eq!(limit_below(&mount(&line, top.path()), membership), expected);
    }

    #[test]
    fn other_filesystems_set_no_limit() {
        let entry = mount("1 0 0:1 / / rw - ext4 dev rw", Path::new("/"));
        assert_eq!(limit_below(&entry, "0::/"), None);
    }
}
