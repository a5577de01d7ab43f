//! The keeper's loop: one thread, one poll(2), at most one plugin.

use std::{
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::{
    KeeperError, directory,
    frame::Refusal,
    held::Held,
    lease::{self, End, Lease},
    wire::{self, Peer},
};
use crate::socket::{self, Kind};

/// How long to wait after accept(2) failed: it would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// The socket; its directory is the keeper's own.
    pub socket: PathBuf,
    /// How long a descriptor is held that no plugin has.
    pub hold_for: Duration,
    /// How many entries are held at most; each takes two descriptors.
    pub capacity: usize,
}

/// A keeper that is bound.
#[derive(Debug)]
pub struct Keeper {
    listener: OwnedFd,
    held: Held,
    lease: Option<Lease>,
    own_uid: u32,
}

/// What poll(2) found.
#[derive(Debug, Clone, Copy)]
struct Ready {
    stop: bool,
    lease: bool,
    listener: bool,
}

impl Keeper {
    /// Binds the socket, mode 0600 in a directory of mode 0700.
    ///
    /// # Errors
    /// See [`KeeperError`].
    ///
    /// # Blocking
    /// A few system calls.
    pub fn bind(options: &KeeperOptions) -> Result<Self, KeeperError> {
        directory::prepare(&options.socket)?;
        let listener = socket::bind(&options.socket, Kind::Messages)?;
        let held = Held::new(options.capacity, options.hold_for);
        let own_uid = rustix::process::geteuid().as_raw();
        Ok(Self { listener, held, lease: None, own_uid })
    }

    /// Holds what plugins put until `stop` is readable; then closes it all, and says how many
    /// descriptors it held.
    ///
    /// # Errors
    /// poll(2) fails.
    ///
    /// # Blocking
    /// Until `stop`.
    pub fn run(mut self, stop: BorrowedFd<'_>) -> Result<usize, KeeperError> {
        loop {
            let ready = self.wait(stop).map_err(|error| KeeperError::Wait(error.into()))?;
            if ready.stop {
                return Ok(self.held.len());
            }
            // What a plugin sent before it went comes first, then that it went, then the next one.
            if ready.lease {
                self.serve();
            }
            let now = Instant::now();
            self.expire(now);
            if ready.listener {
                self.accept(now);
            }
        }
    }

    fn wait(&self, stop: BorrowedFd<'_>) -> Result<Ready, Errno> {
        let ends = [self.held.next_end(), self.lease.as_ref().and_then(Lease::deadline)];
        let end = ends.into_iter().flatten().min();
        let timeout = end.map(|end| {
            let left = end.saturating_duration_since(Instant::now());
            // Whole milliseconds, rounded up: not awake a moment too early, again and again.
            Timespec::try_from(left + Duration::from_millis(1))
                .unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
        });
        let mut fds = vec![
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.lease.as_ref().map(|lease| PollFd::new(lease, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready { stop: false, lease: false, listener: false }),
            Err(error) => return Err(error),
        }
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { stop: is_ready(0), listener: is_ready(1), lease: is_ready(2) })
    }

    fn serve(&mut self) {
        let Some(lease) = &mut self.lease else { return };
        if let Err(end) = lease.serve(&mut self.held) {
            self.end(&end);
        }
    }

    fn end(&mut self, end: &End) {
        let Some(lease) = self.lease.take() else { return };
        self.held.abandon(Instant::now());
        let (pid, held) = (lease.peer().pid, self.held.len());
        match end {
            // It came and went before it said anything: a look at whether the keeper lives.
            End::Closed if lease.deadline().is_some() => {
                tracing::debug!(peer.pid = pid, "a connection came and went");
            }
            End::Closed => tracing::info!(peer.pid = pid, held, "plugin is gone"),
            End::Broken(reason) => {
                tracing::warn!(peer.pid = pid, held, reason, "ended a plugin's connection");
            }
        }
    }

    /// Does what is due: gives up descriptors, and a peer that says nothing.
    fn expire(&mut self, now: Instant) {
        for name in self.held.give_up(now) {
            tracing::warn!(
                name = %name,
                held = self.held.len(),
                "gave up a descriptor that no plugin took in time; reads of its mount fail now"
            );
        }
        let silent =
            self.lease.as_ref().filter(|lease| lease.deadline().is_some_and(|it| it <= now));
        if let Some(end) = silent.map(Lease::expire) {
            self.end(&end);
        }
    }

    fn accept(&mut self, now: Instant) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = match accept_with(&self.listener, flags) {
            Ok(accepted) => accepted,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection; trying again");
                return std::thread::sleep(PAUSE);
            }
        };
        match self.judge(&accepted) {
            Ok(peer) => match Lease::begin(accepted, peer, now) {
                Ok(lease) => self.lease = Some(lease),
                Err(error) => tracing::debug!(%error, "a connection came and went"),
            },
            Err((refusal, text)) => lease::dismiss(&accepted, refusal, text),
        }
    }

    /// Whether whoever connected may have the lease.
    fn judge(&self, accepted: &OwnedFd) -> Result<Peer, (Refusal, String)> {
        let peer = wire::peer(accepted).map_err(|error| {
            (Refusal::Denied, format!("failed to find out who connected: {error}"))
        })?;
        if !wire::is_trusted(peer.uid, self.own_uid) {
            tracing::warn!(peer.uid, peer.pid, "refused a connection of another user");
            return Err((Refusal::Denied, format!("user {} may not connect", peer.uid)));
        }
        match &self.lease {
            None => Ok(peer),
            Some(lease) => {
                tracing::debug!(peer.pid, "refused a second connection");
                let pid = lease.peer().pid;
                let text = format!("another plugin is connected (process {pid}); one at a time");
                Err((Refusal::Busy, text))
            }
        }
    }
}
