//! Where tests stop the process, as it were: every change of a file system asks here first.
//!
//! A crash is an error after which nothing more can be changed, so that no clean-up runs either.

use nix::errno::Errno;

/// Permits the next change.
///
/// # Errors
/// None but those that a test asked for.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests have it fail")]
pub(super) const fn permit() -> Result<(), Errno> {
    Ok(())
}

#[cfg(test)]
pub(super) use stops::{Stop, permit, with};

#[cfg(test)]
mod stops {
    use std::cell::Cell;

    use super::Errno;

    /// Which changes of this thread fail; they count from 0.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in super::super) enum Stop {
        /// None.
        Never,
        /// This one, as on a full disk.
        Once(u64),
        /// This one and all that follow, as after SIGKILL.
        From(u64),
    }

    thread_local! {
        static STATE: Cell<(Stop, u64)> = const { Cell::new((Stop::Never, 0)) };
    }

    pub(in super::super) fn permit() -> Result<(), Errno> {
        let (stop, count) = STATE.get();
        STATE.set((stop, count + 1));
        match stop {
            Stop::Once(at) if count == at => Err(Errno::ENOSPC),
            Stop::From(at) if count >= at => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    /// Runs `change` with a stop; how many changes it made or attempted comes beside its result.
    pub(in super::super) fn with<T>(stop: Stop, change: impl FnOnce() -> T) -> (T, u64) {
        STATE.set((stop, 0));
        let result = change();
        let (_, count) = STATE.replace((Stop::Never, 0));
        (result, count)
    }
}
