//! Between the kernel and the library, where the kernel cannot send again what it was not answered.
//!
//! The library then has one end of a socket pair in the place of the device, and a thread has the
//! other: what it reads from the device it keeps ([`Taken`]) and passes on, and what the library
//! answers it writes to the device, then forgets the request. What a former process left is passed on
//! first, and marked as the kernel marks what it sends again. The rules:
//!
//! - **What the kernel wrote is kept as it is written.** There is no moment at which a request was read
//!   and stands nowhere.
//! - **An answer is noted before anything more is taken.** The one request that may be answered and
//!   kept all the same is one that nothing followed; answered again, it changes nothing, and the kernel
//!   says that it does not know it. So nothing new is taken before opens of a former process are
//!   answered again: the close of one of them may be next.
//! - **The thread waits for nothing but the kernel and the library at the same time.** What the
//!   library does not take yet waits here, and then nothing more is taken.
//! - **An answer is sent when it is with the kernel.** Who sends a notice waits for that
//!   ([`Relay::settle`]), or the kernel could be told that a name is gone, and then that it is there.
//!
//! Requests to forget numbers have no effect here and no answer; they go no further. Neither do
//! requests to interrupt others: the kernel is told that there is no such thing.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    io,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread,
};

use fuser::Session;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};
use parking_lot::Mutex;

use super::{
    FuseError,
    adapter::Adapter,
    ledger::Ledger,
    opens::RESENT,
    resume::pair,
    session::{THREADS, abort},
    taken::{Asked, INTERRUPT, RELAYED, Taken},
};
use crate::mount::{FuseConnection, put_in_place};

const OPEN: u32 = 14;
const OPENDIR: u32 = 27;
const DESTROY: u32 = 38;

/// `struct fuse_out_header`: length, error, request.
const OUT_HEADER: usize = 16;

/// The number of the request, in that and in `struct fuse_in_header` alike.
const REQUEST: Range<usize> = 8..16;

/// The longest answer, with room for what goes before its bytes.
const LONGEST: usize = RELAYED as usize + 4096;

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Relay {
    /// The library's end of the socket pair, or one like it.
    answers: OwnedFd,
    settled: Mutex<mpsc::Receiver<()>>,
}

/// What a relay is made of.
pub(super) struct Ends {
    pub(super) device: Arc<OwnedFd>,
    /// The end of the socket pair that the library does not have.
    pub(super) ours: OwnedFd,
    /// Another descriptor of the end that the library has.
    pub(super) theirs: OwnedFd,
    pub(super) connection: FuseConnection,
}

impl Relay {
    /// Comes between the kernel and a session that has just shaken hands with it.
    ///
    /// # Errors
    /// What the system answers; then nothing was taken.
    pub(super) fn insert(
        device: Arc<OwnedFd>,
        connection: FuseConnection,
        session: &Session<Adapter>,
        ledger: &Ledger,
    ) -> Result<Self, FuseError> {
        let taken = Taken::create(ledger).map_err(FuseError::Ledger)?;
        let failed = |source| FuseError::Session { action: "pass requests on to", source };
        let (ours, theirs) = pair().map_err(failed)?;
        put_in_place(&theirs, session).map_err(failed)?;
        let ends = Ends { device, ours, theirs, connection };
        Self::start(ends, taken, Vec::new()).map_err(failed)
    }

    /// Starts to carry requests; first of all those that a former process left.
    ///
    /// The thread ends when the session does, some time after the relay is dropped.
    ///
    /// # Errors
    /// What the system answers; then nothing was taken.
    pub(super) fn start(ends: Ends, taken: Taken, left: Vec<Asked>) -> io::Result<Self> {
        let Ends { device, ours, theirs, connection } = ends;
        never_wait(&*device)?;
        never_wait(&ours)?;
        let (settle, settled) = mpsc::channel();
        let opens = left.iter().filter(|asked| matches!(asked.operation, OPEN | OPENDIR));
        let carrier = Carrier {
            device,
            session: ours,
            taken,
            opens: opens.map(|asked| asked.request).collect(),
            left: left.len(),
            waiting: left.into(),
            buffer: vec![0; LONGEST],
            ending: None,
            settle,
        };
        let run = move || {
            if let Err(error) = carrier.run() {
                tracing::error!(%error, "requests of a FUSE mount cannot be passed on");
                abort(connection);
            }
        };
        thread::Builder::new().name("fuse-relay".into()).spawn(run)?;
        Ok(Self { answers: theirs, settled: Mutex::new(settled) })
    }

    /// Waits until the kernel has all answers that were sent before.
    ///
    /// # Blocking
    /// For as long as it takes to copy them; it does not wait for requests that are not answered.
    pub(super) fn settle(&self) {
        let settled = self.settled.lock();
        // A request of the number 0 is none. An error on either way says that the session has ended:
        // nothing is on its way then.
        let mark = answer(0, 0);
        let _settled = write(&self.answers, &mark).is_ok() && settled.recv().is_ok();
    }
}

fn never_wait(fd: impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Whether the other side had nothing, or no room, or the request was withdrawn meanwhile.
fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::ENOENT)
}

/// What the thread has.
struct Carrier {
    device: Arc<OwnedFd>,
    session: OwnedFd,
    taken: Taken,
    /// Opens of a former process that are not answered.
    opens: HashSet<u64>,
    /// So many of the first that wait are those of a former process.
    left: usize,
    /// What the library has not taken yet.
    waiting: VecDeque<Asked>,
    buffer: Vec<u8>,
    /// The device has ended, and so many threads of the library are to be told.
    ending: Option<usize>,
    settle: mpsc::Sender<()>,
}

impl Carrier {
    fn run(mut self) -> io::Result<()> {
        loop {
            match self.step() {
                Ok(()) => {}
                // The session has ended, and nobody has an answer to send.
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn step(&mut self) -> nix::Result<()> {
        self.pass_on()?;
        let (answered, asked) = self.wait()?;
        if answered {
            self.answer()?;
        }
        // Where it was not asked for, there was an error, which is found by taking.
        if !asked.is_empty() {
            self.take(asked)?;
        }
        Ok(())
    }

    /// Whether the library has answered, and what there is from the kernel.
    fn wait(&self) -> nix::Result<(bool, PollFlags)> {
        let is_full = !self.waiting.is_empty() || self.ending.is_some_and(|left| left > 0);
        let may_take = !is_full && self.opens.is_empty() && self.taken.has_room();
        let session =
            if is_full { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let device = if may_take { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut both =
            [PollFd::new(self.session.as_fd(), session), PollFd::new(self.device.as_fd(), device)];
        let asked = if self.ending.is_none() { &mut both[..] } else { &mut both[..1] };
        match poll(asked, PollTimeout::NONE) {
            Err(Errno::EINTR) => return Ok((false, PollFlags::empty())),
            answer => answer?,
        };
        let found = |it: &PollFd<'_>| it.revents().unwrap_or(PollFlags::empty());
        let answered = !(found(&both[0]) & !PollFlags::POLLOUT).is_empty();
        let asked = if self.ending.is_none() { found(&both[1]) } else { PollFlags::empty() };
        Ok((answered, asked))
    }

    /// Carries one answer to the kernel.
    fn answer(&mut self) -> nix::Result<()> {
        let length = match read(&self.session, &mut self.buffer) {
            Ok(0) => return Err(Errno::EPIPE),
            Err(errno) if is_passing(errno) => return Ok(()),
            answer => answer?,
        };
        let answer = &mut self.buffer[..length];
        let number = answer.get_mut(REQUEST).ok_or(Errno::EBADMSG)?;
        let request = u64::from_ne_bytes(number.try_into().expect("8 bytes")) & !RESENT;
        number.copy_from_slice(&request.to_ne_bytes());
        if request == 0 {
            // Else nobody waits any more.
            return self.settle.send(()).map_err(|_| Errno::EPIPE);
        }
        if self.ending.is_some() {
            return Ok(());
        }
        self.opens.remove(&request);
        #[cfg(test)]
        super::tests::dies_at("answering");
        match write(&*self.device, answer) {
            // It may know it from the former process, or be unmounted.
            Ok(_) | Err(Errno::ENOENT) => {
                #[cfg(test)]
                super::tests::dies_at("answered");
                self.taken.answered(request);
            }
            // Another process may be able to answer it.
            Err(error) => tracing::warn!(%error, request, "the kernel refused an answer"),
        }
        Ok(())
    }

    /// Takes one request from the kernel.
    fn take(&mut self, found: PollFlags) -> nix::Result<()> {
        if found.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            self.end();
            return Ok(());
        }
        match read(&*self.device, self.taken.landing()) {
            Ok(_) => {}
            Err(Errno::ENODEV) => {
                self.end();
                return Ok(());
            }
            Err(errno) if is_passing(errno) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        #[cfg(test)]
        super::tests::dies_at("taken");
        let asked = self.taken.landed().ok_or(Errno::EBADMSG)?;
        if asked.operation == INTERRUPT {
            let refusal = answer(asked.request, -(Errno::ENOSYS as i32));
            // The request may have been answered meanwhile.
            if let Err(error) = write(&*self.device, &refusal) {
                tracing::debug!(%error, "the kernel does not wait for an interrupt");
            }
        } else if asked.is_awaited() {
            self.taken.keep(asked);
            #[cfg(test)]
            super::tests::dies_at("kept");
            self.waiting.push_back(asked);
        }
        Ok(())
    }

    /// Gives the library as much as it takes.
    fn pass_on(&mut self) -> nix::Result<()> {
        while let Some(asked) = self.waiting.front() {
            let mut message = Cow::Borrowed(self.taken.message(*asked));
            if self.left > 0 {
                let number = (asked.request | RESENT).to_ne_bytes();
                message.to_mut()[REQUEST].copy_from_slice(&number);
            }
            match write(&self.session, &message) {
                Err(errno) if is_passing(errno) => return Ok(()),
                answer => answer?,
            };
            self.waiting.pop_front();
            self.left = self.left.saturating_sub(1);
        }
        while let Some(left @ 1..) = self.ending {
            match write(&self.session, &destroy()) {
                Err(errno) if is_passing(errno) => return Ok(()),
                answer => answer?,
            };
            self.ending = Some(left - 1);
        }
        Ok(())
    }

    /// The mount is gone: nobody waits for an answer, and each thread of the library is to end.
    fn end(&mut self) {
        self.waiting.clear();
        self.left = 0;
        self.ending = Some(THREADS);
    }
}

/// An answer that is only an error, or none.
fn answer(request: u64, error: i32) -> Vec<u8> {
    let length = u32::try_from(OUT_HEADER).expect("16").to_ne_bytes();
    length.into_iter().chain(error.to_ne_bytes()).chain(request.to_ne_bytes()).collect()
}

/// What makes a thread of the library end.
fn destroy() -> Vec<u8> {
    // struct fuse_in_header: length, operation, 8 bytes of number, inode 0, nobody.
    [40, DESTROY, 2, 0, 0, 0, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fuse::LedgerPlace;

    /// A socket in the place of the device tells when something was sent to the kernel.
    #[test]
    fn what_was_answered_is_with_the_kernel_when_it_has_settled() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&LedgerPlace::within(directory.path())).unwrap();
        let ((kernel, device), (ours, theirs)) = (pair().unwrap(), pair().unwrap());
        never_wait(&kernel).unwrap();
        let library = theirs.try_clone().unwrap();
        let connection = FuseConnection::from_number(u32::MAX);
        let ends = Ends { device: Arc::new(device), ours, theirs, connection };
        let relay = Relay::start(ends, Taken::create(&ledger).unwrap(), Vec::new()).unwrap();
        for round in 0..200 {
            let answers = [1, 2, 3].map(|n| answer(8 * round + n, 0));
            for answer in &answers {
                write(&library, answer).unwrap();
            }
            relay.settle();
            for answer in &answers {
                let mut found = [0; 64];
                let length = read(&kernel, &mut found).unwrap();
                assert_eq!(&found[..length], answer);
            }
        }
    }
}
