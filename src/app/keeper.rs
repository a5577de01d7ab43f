//! The keeper as a process.

use std::{os::fd::AsFd, path::PathBuf, time::Duration};

use nix::sys::{
    resource::{Resource, getrlimit},
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use thiserror::Error;

use crate::{
    keeper::{Keeper, KeeperError, KeeperOptions, MAX_ENTRIES},
    mount,
    problems::Problems,
};

/// Descriptors that the keeper needs for itself, with some to spare.
const OWN_DESCRIPTORS: u64 = 32;

/// What the command line says.
#[derive(Debug)]
pub struct KeepOptions {
    socket: PathBuf,
    hold_for: Duration,
}

/// Why the keeper ended.
#[derive(Debug, Error)]
pub enum KeepError {
    /// The process could not be prepared.
    #[error("failed to {action}")]
    Prepare {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The keeper itself.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl KeepOptions {
    /// Checks what the user gave.
    ///
    /// # Errors
    /// All that is wrong, by flag.
    pub fn new(socket: PathBuf, hold_for: Duration) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let shown = socket.display();
        if !socket.is_absolute() || socket.file_name().is_none() {
            problems.add("--socket", format!("{shown} must be an absolute path"));
        }
        // sun_path of unix(7) holds 108 bytes, with a NUL at the end.
        if socket.as_os_str().len() > 107 {
            problems.add("--socket", format!("{shown} must be at most 107 bytes long"));
        }
        if hold_for.is_zero() {
            problems.add("--hold-for", "must be longer than 0s, or no plugin can be restarted");
        }
        problems.into_result(Self { socket, hold_for })
    }
}

/// Runs the keeper until SIGTERM or SIGINT. It then ends at once: plugins still have their own
/// descriptors, and hand them to the next keeper; to wait for one that is away would only hold up
/// an update of the keeper. The process should have no other thread.
///
/// # Errors
/// See [`KeepError`].
///
/// # Blocking
/// Until the signal.
pub fn keep(options: KeepOptions) -> Result<(), KeepError> {
    let failed = |action| move |error| KeepError::Prepare { action, error };
    mount::forbid_core_dumps().map_err(failed("switch off core dumps"))?;
    mount::raise_descriptor_limit().map_err(failed("raise the descriptor limit"))?;
    let stop = stop_signals().map_err(failed("receive signals"))?;
    let capacity = capacity().map_err(failed("read the descriptor limit"))?;
    let KeepOptions { socket, hold_for } = options;
    let keeper = Keeper::bind(&KeeperOptions { socket: socket.clone(), hold_for, capacity })?;
    tracing::info!(socket = %socket.display(), capacity, ?hold_for, "ready");
    let held = keeper.run(stop.as_fd())?;
    tracing::info!(held, "stopped; mounts whose plugin is not running end now");
    Ok(())
}

/// SIGTERM and SIGINT as a descriptor. Their default does nothing to process 1 of a container.
fn stop_signals() -> std::io::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// How many entries the descriptor limit allows.
fn capacity() -> std::io::Result<usize> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let entries = limit.saturating_sub(OWN_DESCRIPTORS) / 2;
    Ok(usize::try_from(entries).unwrap_or(usize::MAX).min(MAX_ENTRIES))
}
