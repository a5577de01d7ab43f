//! Every mount system call of the crate, and all of its `unsafe`.
//!
//! The functions here are free, synchronous and blocking: the mount table belongs to the kernel,
//! so nothing is cached and nothing is mocked. Callers use `spawn_blocking`; tests run against the
//! real kernel in a mount namespace of their own. Linux 5.10 is the oldest kernel supported.
//!
//! Three rules hold throughout. A read-only mount is read-only before anybody can reach it, in
//! every namespace it propagates to. A place is addressed by an open directory and a name, never
//! by walking a path that a pod could have changed meanwhile. And no question about a mount is put
//! to the filesystem behind it, because a FUSE server that died or hangs must not stop an
//! unpublish: "is it mounted" is asked of the VFS, not by `stat(2)` and not by reading the whole
//! mount table on each call.

mod bind;
mod error;
mod fuse;
#[expect(unsafe_code, reason = "the system calls that nix does not wrap")]
mod kernel;
mod machine;
mod point;
#[cfg(test)]
pub(crate) mod scratch;
mod selinux;
#[cfg(test)]
mod space;
pub mod table;
mod target;
mod tmpfs;

pub use error::MountError;
pub use fuse::{FuseConnection, FuseDevice, close_backing, has_ended, put_in_place};
pub use machine::{forbid_core_dumps, memory_limit, raise_descriptor_limit};
pub use selinux::label_directory;
pub use table::check_propagation;
pub use target::{KubeletDir, Target, TargetPath};
pub use tmpfs::{SwapPolicy, Tmpfs, TmpfsOptions, check_swap, mount_or_adopt};
