//! Labels by which containers may read volumes on nodes with SELinux.
//!
//! Container runtimes label a volume for its pod, but not one that is read-only, and volumes of many
//! pods share files, of which each has one label. So what the driver makes is labelled for all
//! containers: the type that they may read, without the categories that keep pods apart. Who may read
//! what is a matter of which mount a pod has. A tmpfs and a FUSE file system get the label as a mount
//! option; on a disk, files inherit it from the directory.
//!
//! Sources: `container_selinux(8)`, mount(8) "context=".

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use super::error::{Failed, MountError};

const LABEL: &str = "system_u:object_r:container_file_t:s0";

/// The attribute that holds a file's label.
const ATTRIBUTE: &str = "security.selinux";

/// What the machine says about SELinux.
#[derive(Debug, Clone, Default)]
struct Found {
    /// Whether the policy is enforced: `1` or `0`. Containers seldom see the file.
    enforce: Option<String>,
    /// Whether the policy has our label, where it can be asked.
    knows_label: bool,
    /// The label of this process.
    own: Option<String>,
}

impl Found {
    /// Asks the kernel.
    fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        Self {
            enforce: read("/sys/fs/selinux/enforce"),
            knows_label: fs::write("/sys/fs/selinux/context", LABEL).is_ok(),
            own: read("/proc/thread-self/attr/current"),
        }
    }

    /// Whether mounts need a label. Without the kernel's word, a process with a type of containers
    /// runs under a policy that has ours. Other modules (AppArmor) write no such labels.
    fn needs_label(&self) -> bool {
        if let Some(enforce) = &self.enforce {
            return enforce.trim() == "1" && self.knows_label;
        }
        let own = self.own.as_deref().unwrap_or_default();
        let own_type = own.trim_end_matches(['\0', '\n']).split(':').nth(2);
        own_type.is_some_and(|it| it == "spc_t" || it.starts_with("container_"))
    }
}

/// Decided once: what is mounted keeps its label, whatever is switched later.
static NEEDS_LABEL: LazyLock<bool> = LazyLock::new(|| Found::here().needs_label());

/// What to add to the options of a new file system: nothing, or a comma and the label.
pub(super) fn mount_option() -> String {
    option(*NEEDS_LABEL)
}

fn option(needs_label: bool) -> String {
    if needs_label { format!(",{}", context()) } else { String::new() }
}

/// Whether a file system with these options lacks the label that it needs.
pub(super) fn is_missing(has_option: impl Fn(&str) -> bool) -> bool {
    *NEEDS_LABEL && !has_option(&context())
}

fn context() -> String {
    format!("context={LABEL}")
}

/// Labels a directory with all that is in it, where containers need that; what is made in it later
/// inherits the label.
///
/// # Errors
/// `System`, of a file system that takes no labels or cannot be written to.
///
/// # Blocking
/// One system call for each file, at the first time; later a single one.
pub fn label_directory(directory: &Path) -> Result<(), MountError> {
    if !*NEEDS_LABEL {
        return Ok(());
    }
    let failed = |error| Failed::new("set the SELinux label in", error).at(directory);
    label(directory).map_err(failed)
}

/// The directory comes last: once it has its label, so has everything below.
fn label(directory: &Path) -> io::Result<()> {
    if has_label(directory) {
        return Ok(());
    }
    let set = |path: &Path| -> io::Result<()> {
        let value = [LABEL.as_bytes(), b"\0"].concat();
        Ok(lsetxattr(path, ATTRIBUTE, &value, XattrFlags::empty())?)
    };
    let mut pending: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            set(&entry.path())?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    set(directory)
}

fn has_label(path: &Path) -> bool {
    let mut value = [0; 256];
    let length = lgetxattr(path, ATTRIBUTE, &mut value);
    let value = length.ok().and_then(|length| value.get(..length));
    value.is_some_and(|value| value.strip_suffix(b"\0").unwrap_or(value) == LABEL.as_bytes())
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;
    use crate::mount::scratch::in_private_namespace;

    fn found(enforce: Option<&str>, knows_label: bool, own: Option<&str>) -> Found {
        Found { enforce: enforce.map(Into::into), knows_label, own: own.map(Into::into) }
    }

    #[test_case(&found(None, false, None), false; "no security module")]
    #[test_case(&found(Some("1\n"), true, None), true; "enforcing")]
    #[test_case(&found(Some("0"), true, Some("system_u:system_r:spc_t:s0")), false; "permissive")]
    #[test_case(&found(Some("1"), false, None), false; "a policy without containers")]
    #[test_case(&found(None, false, Some("system_u:system_r:spc_t:s0\0")), true; "in a privileged container")]
    #[test_case(&found(None, false, Some("system_u:system_r:container_t:s0:c1,c2\n")), true; "in a container")]
    #[test_case(&found(None, false, Some("system_u:system_r:kernel_t:s0")), false; "another type")]
    #[test_case(&found(None, false, Some("docker-default (enforce)\n")), false; "AppArmor")]
    #[test_case(&found(None, false, Some("unconfined\n")), false; "AppArmor without a profile")]
    fn a_label_is_for_nodes_where_containers_need_one(found: &Found, expected: bool) {
        assert_eq!(found.needs_label(), expected);
    }

    /// Without a category: with one, no pod but those that have it could read.
    #[test]
    fn the_label_is_one_that_all_containers_may_read() {
        assert_eq!(option(true), ",context=system_u:object_r:container_file_t:s0");
        assert_eq!(option(false), "");
    }

    #[test]
    fn a_directory_is_labelled_with_all_that_is_in_it_and_once() {
        in_private_namespace(|dir| {
            fs::create_dir_all(dir.join("v1/blobs")).unwrap();
            fs::write(dir.join("v1/blobs/file"), "").unwrap();
            std::os::unix::fs::symlink("nowhere", dir.join("v1/link")).unwrap();
            if let Err(error) = label(dir) {
                eprintln!("SKIPPED: labels cannot be set here: {error}");
                return;
            }
            for path in ["", "v1", "v1/blobs", "v1/blobs/file", "v1/link"] {
                assert!(has_label(&dir.join(path)), "{path}");
            }
            // What has its label is not looked through again.
            fs::write(dir.join("later"), "").unwrap();
            label(dir).unwrap();
            assert!(!has_label(&dir.join("later")));
        });
    }
}
