//! A mounted volume: the session that serves it, and how it ends.

use std::{
    io, iter,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use fuser::{Config, InitFlags, KernelConfig, Session, SessionACL, Version};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Content, FuseError, LedgerPlace, ResumeError,
    adapter::Adapter,
    handles::Handles,
    handover::Handover,
    journal::Left,
    ledger::{Ledger, Name, Shown},
    notice::{self, Notices, Told, Untold},
    relay::{Ends, Relay},
    resume::introduce,
    served::Served,
    table::Table,
    taken::{RELAYED, Taken},
};
use crate::{
    failure::full_message,
    listing::Listing,
    mount::{FuseConnection, Target, has_ended, put_in_place},
    task::blocking,
    volume::Ownership,
};

/// The most bytes of one read: what the kernel allows.
const MAX_READ: u32 = 1 << 20;

/// Threads that take requests; none of them ever waits, so few suffice.
pub(super) const THREADS: usize = 2;

/// Reads ahead that the kernel keeps under way in one volume.
const BACKGROUND: u16 = 64;

/// Blobs lie on a file system of their own, not on one that is stacked on another.
const STACK_DEPTH: u32 = 1;

/// How long a swap waits for readers that may be taking in names of before.
const AT_ONCE: Duration = Duration::from_millis(50);

/// After so long a reader has taken in what a process told before it died.
const TAKEN_IN: Duration = Duration::from_secs(1);

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
    /// Whether the kernel has to ask before it opens a file of a new mount.
    pub ask_to_open: AskToOpen,
    /// Whether a new mount relies on the kernel to send again what a process took and did not answer,
    /// where it can. One that was made goes on as it began.
    pub resend: bool,
}

/// When the kernel has to ask before it opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskToOpen {
    /// Always: so it can read a complete file by itself.
    Always,
    /// Not where all files of the volume are small when it is mounted: an open would cost more than
    /// all reads of a file, which then go through the kernel's cache.
    UnlessSmall,
    /// Never.
    #[cfg(test)]
    Never,
}

impl AskToOpen {
    fn asks(self, is_small: bool) -> bool {
        match self {
            Self::Always => true,
            Self::UnlessSmall => !is_small,
            #[cfg(test)]
            Self::Never => false,
        }
    }
}

/// How the next process comes to know what a former one took from the kernel and did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// The kernel sends it again. Linux 6.9+.
    Resend,
    /// Each request is kept in the ledger until it is answered. It costs: an answer goes by way of
    /// another thread, and the kernel asks for less at a time.
    Replay,
}

/// What kernel and session agreed upon, needed to go on with the connection in another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The protocol that the kernel speaks: major and minor.
    pub protocol: (u32, u32),
    /// The capabilities that the kernel offered, as bits of INIT.
    pub offered: u64,
    /// Those of them that were asked for.
    pub granted: u64,
    /// The most bytes that the kernel reads ahead.
    pub max_readahead: u32,
    /// Whether files may be read by the kernel alone.
    pub passthrough: bool,
    /// What becomes of requests that a process dies with.
    pub in_flight: InFlight,
    /// Whether the kernel opens files by itself, without a message: "zero-message opens".
    pub opens_itself: bool,
}

/// Asks for what we can use of what the kernel offers.
///
/// Not asked for: readers' automatic invalidation (numbers stand for content), and
/// `FUSE_OVER_IO_URING` and cloned descriptors, which a take-over breaks.
///
/// `is_small` tells of all files.
pub(super) fn negotiate(
    config: &mut KernelConfig,
    options: &FuseOptions,
    is_small: bool,
) -> Negotiated {
    let offered = config.capabilities();
    let opens_itself =
        !options.ask_to_open.asks(is_small) && offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
    let passthrough = options.passthrough && !opens_itself;
    let can_resend = options.resend && offered.contains(InitFlags::FUSE_HAS_RESEND);
    let in_flight = if can_resend { InFlight::Resend } else { InFlight::Replay };
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
    let most = match in_flight {
        InFlight::Resend => u32::MAX,
        InFlight::Replay => RELAYED,
    };
    let max_readahead = config.set_max_readahead(most).map_or_else(|most| most, |_| most);
    let background = config.set_max_background(BACKGROUND);
    // The most of a read follows from both.
    let max_write = config.set_max_write(most.min(MAX_READ));
    tracing::debug!(?background, ?max_write, passthrough, ?in_flight, "negotiated with the kernel");
    let Version(major, minor) = config.kernel_abi();
    let (offered, granted) = (offered.bits(), granted.bits());
    let protocol = (major, minor);
    Negotiated { protocol, offered, granted, max_readahead, passthrough, in_flight, opens_itself }
}

/// A volume that is mounted and served.
///
/// Dropped without [`FuseMount::close`], it goes on being served until it is unmounted, or the
/// process ends.
#[derive(Debug)]
pub struct FuseMount {
    served: Arc<Served>,
    ledger: Ledger,
    connection: FuseConnection,
    negotiated: Negotiated,
    /// Where answers go by way of another thread.
    relay: Option<Relay>,
    /// One swap at a time.
    swapping: Mutex<Notices>,
    ended: watch::Receiver<bool>,
    thread: JoinHandle<()>,
}

impl FuseMount {
    /// Mounts a listing at `target`, on top of what is there, and serves it.
    ///
    /// `ledger` is this mount's own, made if it is not there, and removed by the caller when the volume
    /// is: what another process needs to go on stands there, at every moment from now on. It must
    /// survive the process, and need not survive a reboot.
    ///
    /// # Errors
    /// `Mount`, `Session`, `Ledger`; nothing stays mounted then.
    ///
    /// # Blocking
    /// For as long as it takes to build the inode table and write it down, in proportion to the
    /// listing, and to mount. Within a runtime, which then runs the reads.
    pub fn new(
        target: &Target,
        listing: &Listing,
        options: FuseOptions,
        content: Arc<dyn Content>,
        ledger: &LedgerPlace,
    ) -> Result<Self, FuseError> {
        let table = Table::new(listing, options.ownership, SystemTime::now());
        let ledger = Ledger::create(ledger).map_err(FuseError::Ledger)?;
        let untold = Untold { names: iter::empty(), directories: &[] };
        ledger.save(listing, &table, untold, iter::empty()).map_err(FuseError::Ledger)?;
        let device = target.mount_fuse(MAX_READ)?;
        let connection = device.connection();
        let start = || {
            let device = Arc::new(device.into_fd());
            let handles =
                Handles::create(&ledger, Arc::clone(&device)).map_err(FuseError::Ledger)?;
            let served =
                Arc::new(Served::new(table, content, Arc::clone(&device), handles, options));
            let failed = |action| move |source| FuseError::Session { action, source };
            let adapter = Adapter(Arc::clone(&served));
            let own = device.try_clone().map_err(failed("keep"))?;
            let session = Session::from_fd(adapter, own, SessionACL::All, config());
            let session = session.map_err(failed("start"))?;
            let negotiated = served.agreed();
            let negotiated = negotiated
                .ok_or_else(|| failed("start")(io::Error::other("a session without INIT")))?;
            let relay = match negotiated.in_flight {
                InFlight::Resend => None,
                InFlight::Replay => {
                    let device = Arc::clone(&device);
                    Some(Relay::insert(device, connection, &session, &ledger)?)
                }
            };
            let serving = Serving { served, ledger, connection, negotiated, relay };
            let mut mount = serving.run(session, || {}).map_err(failed("run"))?;
            mount.settle_opens(target);
            Ok(mount)
        };
        start().inspect_err(|_| {
            // Without a session nobody may be left waiting for one.
            let undone = target.unmount_all().map(drop).and_then(|()| connection.abort());
            if let Err(error) = undone {
                tracing::warn!(error = full_message(&error), "failed to undo a FUSE mount");
            }
        })
    }

    /// Goes on with a mount that a former process made, and tells what it shows.
    ///
    /// `device` is a descriptor of the connection, and stays the caller's; `handover` is what
    /// [`FuseMount::handover`] gave; `ledger` and `options` are what the mount was made with. Whoever
    /// waits for an answer of the former process gets it from this one.
    ///
    /// # Errors
    /// [`ResumeError`]; then the mount is as it was, and another attempt can be made.
    ///
    /// # Blocking
    /// In proportion to the listing and to what the last swap changed. Within a runtime, which then
    /// runs the reads.
    pub fn resume(
        device: impl AsFd,
        handover: &[u8],
        ledger: &LedgerPlace,
        options: FuseOptions,
        content: Arc<dyn Content>,
    ) -> Result<(Self, Arc<Listing>), ResumeError> {
        let failed = |action| move |source| ResumeError::System { action, source };
        let Handover { mount, connection, negotiated } = Handover::read(handover)?;
        let ledger = Ledger::of(ledger, mount);
        let Shown { listing, table, names, directories, gone } = ledger.load(options.ownership)?;
        let left = Left::read(&ledger)?;
        let taken = match negotiated.in_flight {
            InFlight::Resend => None,
            InFlight::Replay => Some(Taken::read(&ledger)?),
        };
        if has_ended(&device).map_err(failed("look after"))? {
            return Err(ResumeError::Ended);
        }
        let device = device.as_fd().try_clone_to_owned().map_err(failed("keep"))?;
        let device = Arc::new(device);
        let handles = Handles::restore(&ledger, left, Arc::clone(&device), &options.ownership)
            .map_err(failed("note the open files of"))?;
        let served = Arc::new(Served::new(table, content, Arc::clone(&device), handles, options));
        served.agree(negotiated);
        served.remember(gone);
        let (session, ours) = introduce(Adapter(Arc::clone(&served)), config(), &negotiated)
            .map_err(failed("begin to serve"))?;
        let relay = if let Some((taken, left)) = taken {
            let theirs = session.as_fd().try_clone_to_owned().map_err(failed("take over"))?;
            let ends = Ends { device, ours, theirs, connection };
            Some(Relay::start(ends, taken, left).map_err(failed("take over"))?)
        } else {
            put_in_place(&device, &session).map_err(failed("take over"))?;
            // First of all: what is read twice would be answered twice.
            notice::resend(&device).map_err(failed("ask for what was not answered of"))?;
            None
        };
        let serving = Serving { served, ledger, connection, negotiated, relay };
        let former = Arc::clone(&serving.served);
        let first = move || former.handles.lock().serve(negotiated.passthrough);
        let mount = serving.run(session, first).map_err(failed("serve"))?;
        mount.tell_again(&names, &directories);
        Ok((mount, Arc::new(listing)))
    }

    /// Lets the kernel open files by itself from now on, if that was agreed upon.
    ///
    /// It does so when it was told once that there is no open, and no flush, which would have every
    /// close wait for this process. Until then it must not be anybody's close.
    fn settle_opens(&mut self, target: &Target) {
        if !self.negotiated.opens_itself {
            return;
        }
        let any = self.served.table().any_file();
        let opened = any.map(|file| target.open_and_close(&file));
        if let Some(Err(error)) = &opened {
            let error = full_message(error);
            tracing::info!(error, "the kernel has to ask before it opens a file of a small volume");
        }
        if !matches!(opened, Some(Ok(()))) {
            self.negotiated.opens_itself = false;
            self.served.ask_to_open();
        }
    }

    /// Repeats what the former process may not have had the time to tell.
    fn tell_again(&self, names: &[Name], directories: &[u64]) {
        let each = names.iter().map(|(directory, name)| (*directory, &name[..]));
        let untold = Untold { names: each, directories };
        if let Err(error) = notice::tell(&*self.served.device, untold, *self.swapping.lock()) {
            tracing::warn!(%error, "failed to tell the kernel of changes; names may lead to old ones");
        }
        // What the former process told in its last moment may be taken in only now.
        if names.len() > 1 {
            let (served, closed) =
                (Arc::downgrade(&self.served), self.served.tasks.token().clone());
            let _runtime = self.served.runtime.enter();
            self.served.tasks.spawn(async move {
                if closed.run_until_cancelled(sleep(TAKEN_IN)).await.is_some()
                    && let Some(served) = served.upgrade()
                {
                    served.forget_names();
                }
            });
        }
    }

    /// Shows another listing, at once for all lookups after it.
    ///
    /// Open files keep their content, open directories their listing. Until this returns, a process
    /// can still see single names from before: all kinds of them on kernels before Linux 6.16, which
    /// are told name by name; later, those that a listing of a directory under way brings back.
    ///
    /// # Errors
    /// `Ledger` if it could not be written down: nothing has changed then. `Session` if the kernel
    /// could not be told: names may go on leading to what was before. The listing is shown all the
    /// same.
    ///
    /// # Blocking
    /// In proportion to the listing; and waits for lookups under way. Never call it on a thread
    /// that this volume's content depends on.
    pub fn show(&self, listing: &Listing) -> Result<(), FuseError> {
        let notices = self.swapping.lock();
        let old = Arc::clone(&self.served.table());
        let new = Arc::new(old.succeed(listing, SystemTime::now()));
        let outdated = old.outdated(&new);
        let (mut former, left) = self.served.former();
        former.push(Arc::clone(&old));
        let gone = Served::gone(&former, left, &new);
        self.ledger.save(listing, &new, outdated.untold(&old), gone).map_err(FuseError::Ledger)?;
        drop(former);
        #[cfg(test)]
        super::tests::dies_at("saved");
        self.served.swap(&old, &new);
        #[cfg(test)]
        super::tests::dies_at("swapped");
        // Before the kernel is told: who asks from now on may have taken in something old.
        let is_behind = outdated.names.len() > 1 && self.served.directories.lock().swapped();
        if let Some(relay) = &self.relay {
            relay.settle();
        }
        let told = notice::tell(&*self.served.device, outdated.untold(&old), *notices)
            .map_err(|source| FuseError::Session { action: "tell of changes to", source })?;
        if told == Told::AtOnce && is_behind {
            self.wait_until_taken_in();
        }
        Ok(())
    }

    /// A listing of a directory under way brings back names from before the swap. Whoever makes it
    /// takes them in at once, as a rule; if not, they are forgotten when he asks again.
    fn wait_until_taken_in(&self) {
        let until = Instant::now() + AT_ONCE;
        while self.served.directories.lock().is_behind() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        self.served.forget_names();
    }

    /// Makes swaps be told as older kernels need it.
    #[cfg(test)]
    pub(super) fn notify_by(&self, notices: Notices) {
        *self.swapping.lock() = notices;
    }

    /// What is served, for tests that look inside.
    #[cfg(test)]
    pub(super) fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    /// Whether it shows just this listing already.
    ///
    /// # Blocking
    /// In proportion to the listing.
    pub fn shows(&self, listing: &Listing) -> bool {
        let table = Arc::clone(&self.served.table());
        table.is_of(listing)
    }

    /// Another descriptor of the connection, which keeps the mount alive in whatever process.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.served.device.try_clone()
    }

    /// What must go with the descriptor, and never changes: see [`FuseMount::resume`].
    pub fn handover(&self) -> Vec<u8> {
        let Self { ledger, connection, negotiated, .. } = self;
        let (connection, negotiated) = (*connection, *negotiated);
        Handover { mount: ledger.mount(), connection, negotiated }.bytes()
    }

    /// The kernel's name of the connection.
    pub fn connection(&self) -> FuseConnection {
        self.connection
    }

    /// What was agreed upon with the kernel.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
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
        let Self { served, connection, mut ended, thread, .. } = self;
        let is_overdue = timeout(grace, ended.wait_for(|ended| *ended)).await.is_err();
        served.tasks.token().cancel();
        if is_overdue {
            blocking(move || abort(connection)).await;
        }
        let has_ended = timeout(AFTER_ABORT, ended.wait_for(|ended| *ended)).await.is_ok();
        if has_ended {
            served.tasks.drain().await;
            // It has nothing left to do, and its panic would have been reported.
            drop(thread.join());
        }
        has_ended
    }
}

/// All that a session needs to be run.
struct Serving {
    served: Arc<Served>,
    ledger: Ledger,
    connection: FuseConnection,
    negotiated: Negotiated,
    relay: Option<Relay>,
}

impl Serving {
    /// Starts the threads; when nothing can fail any more, `first` is called before anything is read.
    fn run(
        self,
        session: Session<Adapter>,
        first: impl FnOnce() + Send + 'static,
    ) -> io::Result<FuseMount> {
        let Self { served, ledger, connection, negotiated, relay } = self;
        let (end, ended) = watch::channel(false);
        let run = move || {
            first();
            run(session, connection);
            end.send_replace(true);
        };
        let thread = thread::Builder::new().name("fuse".into()).spawn(run)?;
        let swapping = Mutex::new(Notices::AtOnce);
        Ok(FuseMount { served, ledger, connection, negotiated, relay, swapping, ended, thread })
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config
}

/// Serves until the volume is unmounted. After an error nobody would serve it, and readers would
/// wait for ever.
fn run(session: Session<Adapter>, connection: FuseConnection) {
    if let Err(error) = session.run() {
        tracing::error!(%error, "a FUSE session failed");
        abort(connection);
    }
}

/// Ends a connection that nobody can serve.
pub(super) fn abort(connection: FuseConnection) {
    if let Err(error) = connection.abort() {
        tracing::warn!(error = full_message(&error), "failed to abort a FUSE connection");
    }
}
