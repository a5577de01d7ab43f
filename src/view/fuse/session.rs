//! A mounted volume: the session that serves it, and how it ends.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use fuser::{Config, InitFlags, KernelConfig, Notifier, Session, SessionACL, Version};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    Content, FuseError,
    adapter::Adapter,
    notice::{self, Notices},
    served::Served,
    table::Table,
};
use crate::{
    failure::full_message,
    listing::Listing,
    mount::{FuseConnection, FuseDevice, Target},
    task::blocking,
    volume::Ownership,
};

/// The most bytes of one read: what the kernel allows.
const MAX_READ: u32 = 1 << 20;

/// Threads that take requests; none of them ever waits, so few suffice.
const THREADS: usize = 2;

/// Reads ahead that the kernel keeps under way in one volume.
const BACKGROUND: u16 = 64;

/// Blobs lie on a file system of their own, not on one that is stacked on another.
const STACK_DEPTH: u32 = 1;

/// How long an aborted session may take: its threads wait for nothing then.
const AFTER_ABORT: Duration = Duration::from_secs(5);

/// What a volume is like, beyond its listing.
#[derive(Debug, Clone, Copy)]
pub struct FuseOptions {
    /// Whom files belong to.
    pub ownership: Ownership,
    /// Whether extended attributes tell the object version of a file.
    pub xattrs: bool,
    /// Whether the kernel may read complete files by itself, where it can.
    pub passthrough: bool,
}

/// What kernel and session agreed upon, needed to go on with the connection in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The protocol that the kernel speaks: major and minor.
    pub protocol: (u32, u32),
    /// The capabilities that the kernel offered, as bits of INIT.
    pub offered: u64,
    /// The most bytes that the kernel reads ahead.
    pub max_readahead: u32,
    /// Whether files may be read by the kernel alone.
    pub passthrough: bool,
}

/// Asks for what we can use of what the kernel offers.
///
/// Not asked for: `NO_OPEN` (opens must answer `NOFLUSH`), readers' automatic invalidation (numbers
/// stand for content), and `FUSE_OVER_IO_URING` and cloned descriptors, which a take-over breaks.
pub(super) fn negotiate(config: &mut KernelConfig, passthrough: bool) -> Negotiated {
    let offered = config.capabilities();
    let mut wanted = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_ALLOW_IDMAP;
    if passthrough {
        wanted |= InitFlags::FUSE_PASSTHROUGH;
    }
    let granted = wanted & offered;
    let agreed = config.add_capabilities(granted).is_ok();
    let passthrough = agreed
        && granted.contains(InitFlags::FUSE_PASSTHROUGH)
        && config.set_max_stack_depth(STACK_DEPTH).is_ok();
    // Each answers with the nearest value when it does not take ours.
    let max_readahead = config.set_max_readahead(u32::MAX).unwrap_or_else(|most| most);
    let background = config.set_max_background(BACKGROUND);
    let max_write = config.set_max_write(MAX_READ);
    tracing::debug!(?background, ?max_write, passthrough, "negotiated with the kernel");
    let Version(major, minor) = config.kernel_abi();
    Negotiated { protocol: (major, minor), offered: offered.bits(), max_readahead, passthrough }
}

/// A volume that is mounted and served.
///
/// Dropped without [`FuseMount::close`], it goes on being served until it is unmounted, or the
/// process ends.
#[derive(Debug)]
pub struct FuseMount {
    served: Arc<Served>,
    device: OwnedFd,
    connection: FuseConnection,
    notifier: Notifier,
    /// One swap at a time.
    swapping: Mutex<Notices>,
    ended: watch::Receiver<bool>,
    thread: JoinHandle<()>,
}

impl FuseMount {
    /// Mounts a listing at `target`, on top of what is there, and serves it.
    ///
    /// # Errors
    /// `Mount`, `Session`; nothing stays mounted then.
    ///
    /// # Blocking
    /// For as long as it takes to build the inode table, in proportion to the listing, and to
    /// mount. Within a runtime, which then runs the reads.
    pub fn new(
        target: &Target,
        listing: &Listing,
        options: FuseOptions,
        content: Arc<dyn Content>,
    ) -> Result<Self, FuseError> {
        let table = Table::new(listing, options.ownership, SystemTime::now());
        let served = Arc::new(Served::new(table, content, options, Handle::current()));
        let device = target.mount_fuse(MAX_READ)?;
        let connection = device.connection();
        Self::serve(served, device).inspect_err(|_| {
            // Without a session nobody may be left waiting for one.
            let undone = target.unmount_all().map(drop).and_then(|()| connection.abort());
            if let Err(error) = undone {
                tracing::warn!(error = full_message(&error), "failed to undo a FUSE mount");
            }
        })
    }

    fn serve(served: Arc<Served>, device: FuseDevice) -> Result<Self, FuseError> {
        let failed = |action| move |source| FuseError::Session { action, source };
        let connection = device.connection();
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let adapter = Adapter(Arc::clone(&served));
        let session = Session::from_fd(adapter, device.into_fd(), SessionACL::All, config)
            .map_err(failed("start"))?;
        let device = session.as_fd().try_clone_to_owned().map_err(failed("keep"))?;
        let notifier = session.notifier();
        let (end, ended) = watch::channel(false);
        let run = move || {
            run(session, connection);
            end.send_replace(true);
        };
        let thread =
            thread::Builder::new().name("fuse".into()).spawn(run).map_err(failed("run"))?;
        let swapping = Mutex::new(Notices::AtOnce);
        Ok(Self { served, device, connection, notifier, swapping, ended, thread })
    }

    /// Shows another listing, at once for all lookups after it.
    ///
    /// Open files keep their content, open directories their listing. Until this returns, a process
    /// can still see single names from before: all kinds of them on kernels before Linux 6.16, which
    /// are told name by name; later, those that a listing of a directory under way brings back.
    ///
    /// # Errors
    /// `Session` if the kernel could not be told: names may go on leading to what was before. The
    /// listing is shown all the same.
    ///
    /// # Blocking
    /// In proportion to the listing; and waits for lookups under way. Never call it on a thread
    /// that this volume's content depends on.
    pub fn show(&self, listing: &Listing) -> Result<(), FuseError> {
        let notices = self.swapping.lock();
        let (old, new) = self.served.swap(listing, SystemTime::now());
        let outdated = old.outdated(&new);
        notice::tell(&self.device, &self.notifier, &old, &outdated, *notices)
            .map_err(|source| FuseError::Session { action: "tell of changes to", source })
    }

    /// Makes swaps be told as older kernels need it.
    #[cfg(test)]
    pub(super) fn notify_by(&self, notices: Notices) {
        *self.swapping.lock() = notices;
    }

    /// Another descriptor of the connection, which keeps the mount alive in whatever process.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.device.as_fd().try_clone_to_owned()
    }

    /// The kernel's name of the connection.
    pub fn connection(&self) -> FuseConnection {
        self.connection
    }

    /// What was agreed upon with the kernel.
    pub fn negotiated(&self) -> Option<Negotiated> {
        self.served.negotiated.get().copied()
    }

    /// The inode numbers of the listing that is shown, for a process that goes on with the
    /// connection.
    pub fn numbers(&self) -> Vec<u8> {
        let table = Arc::clone(&self.served.table());
        table.numbers()
    }

    /// Whether the session has ended: the volume was unmounted, or its connection aborted.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Ends the session of a volume that was unmounted. False if a thread of it hangs in content
    /// that breaks its promise not to block; it is left behind then.
    ///
    /// Reads under way fail. Processes that still have files open are served for `grace`; then the
    /// connection is aborted, and they get errors.
    ///
    /// # Cancellation
    /// The session ends by itself when nothing is open any more.
    pub async fn close(self, grace: Duration) -> bool {
        let Self { served, connection, mut ended, thread, device, notifier, swapping: _ } = self;
        let is_overdue = timeout(grace, ended.wait_for(|ended| *ended)).await.is_err();
        served.tasks.token().cancel();
        if is_overdue {
            blocking(move || abort(connection)).await;
        }
        let has_ended = timeout(AFTER_ABORT, ended.wait_for(|ended| *ended)).await.is_ok();
        drop((device, notifier));
        if has_ended {
            served.tasks.drain().await;
            // It has nothing left to do, and its panic would have been reported.
            drop(thread.join());
        }
        has_ended
    }
}

/// Serves until the volume is unmounted. After an error nobody would serve it, and readers would
/// wait for ever.
fn run(session: Session<Adapter>, connection: FuseConnection) {
    if let Err(error) = session.run() {
        tracing::error!(%error, "a FUSE session failed");
        abort(connection);
    }
}

fn abort(connection: FuseConnection) {
    if let Err(error) = connection.abort() {
        tracing::warn!(error = full_message(&error), "failed to abort a FUSE connection");
    }
}
