//! Pods with `hostUsers: false`: what their runtime does with a published volume, done here.
//!
//! A runtime clones the mount, maps its owners through the pod's user namespace (an idmapped mount), and
//! attaches the clone in the container. Whoever is 185 in the pod then owns what the volume shows as 185.

use std::{
    ffi::c_int,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process::{Child, Command},
};

use nix::NixPath;

use crate::{
    fixture::{Fixture, owner},
    manifests::Manifests,
    refresh::eventually,
    support::namespace::Ids,
};

/// Where the pod's ids begin on the node.
const BASE: u32 = 200_000;

pub(crate) async fn a_pod_may_have_a_user_namespace(fixture: Fixture) {
    if fixture.ids == Ids::RootOnly {
        return; // There are no ids to map to.
    }
    fixture.put_certificates().await;
    let pods = UserNamespace::start().await;
    let examples = Manifests::load().volumes;
    for view in ["tmpfs", "disk", "fuse"] {
        if view == "fuse" && File::open("/dev/fuse").is_err() {
            continue; // Said loudly by others.
        }
        let example =
            format!("volumes/user-namespaces.yaml: Pod user-namespace-{view}, volume objects");
        let example = examples.iter().find(|volume| volume.place == example).expect("an example");
        let mut pod = fixture.pod("certs");
        let own = pod.attributes.clone();
        pod.attributes = example.attributes.clone().into_iter().chain(own).collect();
        pod.fs_group.clone_from(&example.fs_group);
        let target = fixture.publish(&pod).await;
        let inside = fixture.home.path().join(format!("container-{view}"));
        std::fs::create_dir(&inside).expect("an empty directory");
        pods.mount(&target, &inside).expect("the mount takes an id mapping");
        let store = inside.join("keystore.jks");
        assert_eq!(std::fs::read(&store).expect("a readable file"), b"keystore");
        // Seen from the node: root and 185 of the pod.
        assert_eq!(owner(&store), format!("{BASE}:{} 0440", BASE + 185), "{view}");
        assert_eq!(std::fs::metadata(target.join("keystore.jks")).expect("it is there").uid(), 0);
        let refused = std::fs::write(inside.join("new"), "").expect_err("it is read-only");
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

/// The user namespace of a pod.
struct UserNamespace {
    holder: Child,
    file: File,
}

impl UserNamespace {
    async fn start() -> Self {
        let holder = Command::new("unshare").args(["--user", "sleep", "120"]).spawn();
        let holder = holder.expect("util-linux is here");
        let process = format!("/proc/{}", holder.id());
        let ours = std::fs::read_link("/proc/self/ns/user").expect("/proc is mounted");
        let namespace = format!("{process}/ns/user");
        eventually("a user namespace", || {
            std::fs::read_link(&namespace).ok().filter(|theirs| *theirs != ours)
        })
        .await;
        for map in ["uid_map", "gid_map"] {
            let map = format!("{process}/{map}");
            std::fs::write(map, format!("0 {BASE} 1000")).expect("root may map ids");
        }
        let file = File::open(namespace).expect("a namespace is a file");
        Self { holder, file }
    }

    /// Attaches a copy of the mount at `from`, with the owners of this namespace.
    fn mount(&self, from: &Path, at: &Path) -> io::Result<()> {
        let copy = clone_mount(from)?;
        map_owners(&copy, &self.file)?;
        attach(&copy, at)
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        let _ended = self.holder.kill();
        let _reaped = self.holder.wait();
    }
}

#[allow(unsafe_code, reason = "no crate here has open_tree(2)")]
fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let answer = path.with_nix_path(|path| {
        // SAFETY: the path is NUL-terminated and outlives the call.
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }
    })?;
    let fd = c_int::try_from(checked(answer)?).expect("a descriptor fits its type");
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[allow(unsafe_code, reason = "no crate here has mount_setattr(2)")]
fn map_owners(mount: &OwnedFd, namespace: &File) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: the path is a NUL-terminated constant; pointer and size describe `attr`, which outlives
    // the call and is only read.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    checked(answer).map(drop)
}

#[allow(unsafe_code, reason = "no crate here has move_mount(2)")]
fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    let answer = at.with_nix_path(|at| {
        // SAFETY: both paths are NUL-terminated and outlive the call.
        unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                at.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        }
    })?;
    checked(answer).map(drop)
}

fn checked(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
