//! The plugin's side for the long run: what the keeper should hold, and a thread that sees to it.

mod table;
mod worker;

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use self::table::Table;
use super::{EntryName, Kept, State};

/// Whether the keeper is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// No attempt to connect has ended yet.
    Starting,
    /// It is, and gives up after `hold_for` what no plugin takes.
    Connected {
        /// As the keeper was told.
        hold_for: Duration,
    },
    /// It is not, and this is why, for people.
    Away(String),
}

/// For metrics and conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustodianStatus {
    /// Whether the keeper is there.
    pub link: Link,
    /// How many descriptors the keeper holds, each with its last state.
    pub held: usize,
    /// How many it does not, or with an older state: these mounts do not outlive the plugin.
    pub waiting: usize,
    /// The first of these that a keeper that is there refuses, and why.
    pub refused: Option<(EntryName, String)>,
}

/// Owns what the keeper should hold, and hands it over: at once, after the keeper was away, and to
/// the next keeper.
///
/// Calls that change something only note it; a thread does it. A keeper that is away makes nothing
/// fail: what it should hold is handed over when it is back. Dropping the custodian ends the thread
/// and the lease; what the keeper holds then waits for the next plugin.
#[derive(Debug)]
pub struct Custodian {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    table: Mutex<Table>,
    /// Told of every change of the table.
    changed: Condvar,
    /// Written to when the thread has something to do.
    wake: OwnedFd,
}

impl Custodian {
    /// Starts the thread, which connects to the keeper at `socket` and takes what it holds.
    ///
    /// # Errors
    /// No descriptor or thread can be had.
    pub fn start(socket: PathBuf) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (table, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { socket, table, changed, wake });
        let worker = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("keeper-client".to_owned())
                .spawn(move || worker::run(&shared))?
        };
        Ok(Self { shared, worker: Some(worker) })
    }

    /// What earlier plugins left with the keeper; each is told once, and is the custodian's from
    /// then on: [`Custodian::release`] what cannot be used.
    ///
    /// Waits for `patience` until the keeper has answered. One that does not listen holds nothing,
    /// so that is an answer too; one that serves another plugin, which is about to end, is waited
    /// for. What is found later is told by a later call.
    ///
    /// # Blocking
    /// For `patience`.
    pub fn found(&self, patience: Duration) -> Vec<Kept> {
        let end = Instant::now() + patience;
        let mut table = self.shared.table.lock();
        while !table.has_answer() {
            if self.shared.changed.wait_until(&mut table, end).timed_out() {
                break;
            }
        }
        table.take_found()
    }

    /// Has the keeper hold a duplicate of `fd` with this state, in place of what had the name.
    pub fn put(&self, name: EntryName, fd: Arc<OwnedFd>, state: State) {
        self.change(|table| table.put(Kept { name, fd, state: Arc::new(state) }));
    }

    /// Replaces a state; `false` if nothing has the name.
    pub fn update(&self, name: EntryName, state: State) -> bool {
        self.change(|table| table.update(name, Arc::new(state)))
    }

    /// Forgets the entry, and has the keeper close it. Unmount first.
    pub fn release(&self, name: EntryName) {
        self.change(|table| table.release(name));
    }

    /// Whether the keeper holds the entry with its last state, or comes to hold it within
    /// `patience`. A keeper that is away, or refuses, is not waited for.
    ///
    /// # Blocking
    /// For `patience`.
    pub fn is_held(&self, name: EntryName, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut table = self.shared.table.lock();
        while table.may_soon_hold(name) {
            if self.shared.changed.wait_until(&mut table, end).timed_out() {
                break;
            }
        }
        table.holds(name)
    }

    /// How things stand.
    pub fn status(&self) -> CustodianStatus {
        self.shared.table.lock().status()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let answer = change(&mut self.shared.table.lock());
        self.shared.tell();
        answer
    }
}

impl Drop for Custodian {
    /// # Blocking
    /// For a request that is under way, at most some seconds.
    fn drop(&mut self) {
        self.change(Table::stop);
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the thread that speaks to the keeper has panicked");
        }
    }
}

impl Shared {
    fn tell(&self) {
        self.changed.notify_all();
        // Full means that the thread will wake up anyway.
        if let Err(error) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes())
            && error != rustix::io::Errno::AGAIN
        {
            tracing::error!(%error, "failed to wake the thread that speaks to the keeper");
        }
    }
}
