//! The keeper: a process that holds descriptors of `/dev/fuse` while the node plugin is away.
//!
//! A FUSE mount dies with the last descriptor of its connection. The plugin therefore hands a
//! duplicate of each to the keeper, together with what another plugin needs to go on; a plugin that
//! was restarted or upgraded takes them back, and reads in pods waited meanwhile instead of failing.
//! The keeper does not care what it holds: it reads nothing, writes nothing, mounts nothing.
//!
//! # Protocol
//!
//! A Unix socket of type `SOCK_SEQPACKET`: one message is one frame (`frame.rs`), at most
//! [`MAX_FRAME`] bytes, and descriptors travel with the frame that names them (`SCM_RIGHTS`). The
//! keeper speaks first, so that a peer it refuses has sent nothing that closing could lose:
//!
//! ```text
//! keeper                                    plugin
//! Greeting(versions) | Failed(Busy, Denied)
//!                                           Hello(versions)
//! Welcome(version, ...) | Failed(Version)
//!                                           Put(name) + descriptor, state
//! Done | Failed(...)                        Update(name) + state
//! Page(names, sizes, more?)                 List(after)
//! Entry(name) + descriptor, state           Take(name)
//! Done | Failed(Unknown)                    Release(name)
//! ```
//!
//! One request, one answer. A frame that cannot be read ends the connection. Greeting, Hello and
//! Failed keep their form in every version; the rest is what the agreed version says.
//!
//! # States are descriptors
//!
//! A state (an inode table may have 10 MB and more) travels as a sealed memfd, not as bytes. The
//! keeper stays a few MiB whatever it holds, every frame stays small, an update replaces the whole
//! state at once or not at all, and the pages are charged to the plugin that wrote them. The seals
//! make size and content final: whoever gets a state reads what was put. Bytes in length-prefixed
//! frames would have needed buffers, limits on their sum, and a rule for half of a state.
//!
//! # The lease
//!
//! The plugin's connection is its lease: there is one, and a second is refused while the first
//! lives. The kernel closes the connection of a process that dies, however it dies. From then on
//! each descriptor has `hold_for` to be taken again; then it is closed, which the log tells, and
//! reads of that mount fail with ENOTCONN instead of waiting for ever.
//!
//! Everything a peer can send is bounded: frames, descriptors in a frame, states, entries, the time
//! for a greeting. An answer that the peer does not read ends its connection.
//!
//! Source: unix(7), cmsg(3), `memfd_create(2)`, kernel filesystems/fuse.

mod client;
mod custodian;
mod directory;
mod error;
mod frame;
mod held;
mod lease;
mod name;
mod server;
mod state;
mod wire;

pub use self::{
    client::{Client, Kept, Listed},
    custodian::{Custodian, CustodianStatus, Link},
    error::{ClientError, KeeperError},
    frame::{Refusal, Versions},
    name::{EntryName, EntryNameError},
    server::{Keeper, KeeperOptions},
    state::{State, StateError},
};

/// The versions of the protocol that this build speaks, as keeper and as plugin.
pub const VERSIONS: Versions = Versions::new(1, 1);

/// The largest frame, in bytes.
pub const MAX_FRAME: usize = 16 << 10;

/// The largest state, in bytes. The keeper does not read it; its pages are the plugin's.
pub const MAX_STATE: u64 = 256 << 20;

/// How many entries a keeper holds at most, however many descriptors it may open: 64 volumes for
/// each of the 64 pods of a large node.
pub const MAX_ENTRIES: usize = 4096;
