//! A plugin's connection to the keeper.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::{
    ClientError, EntryName, Refusal, State, VERSIONS,
    frame::{Reply, Request},
    wire,
};

/// How long the keeper may take for one answer. It never waits for anything, so one that takes
/// longer is stopped or gone.
const ANSWER: Duration = Duration::from_secs(10);

/// The first pause between attempts to connect; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A descriptor that the keeper holds, and what goes with it.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Whose it is.
    pub name: EntryName,
    /// The same open file as was put.
    pub fd: Arc<OwnedFd>,
    /// What was put or updated with it last.
    pub state: Arc<State>,
}

/// An entry in the keeper's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: EntryName,
    /// The size of its state, in bytes.
    pub state_length: u64,
}

/// A connection to the keeper, and with it the lease: what it put or took stays the keeper's as long
/// as it lives.
///
/// All calls block for a round trip over a Unix socket, at most 10 s. After an error for which
/// [`ClientError::ends_connection`] holds, only a new connection helps.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    version: u16,
    hold_for: Duration,
}

impl Client {
    /// Connects. For `patience` it tries again while there is no keeper or another plugin is
    /// connected: the kernel takes a moment to close the connection of one that died.
    ///
    /// # Errors
    /// There is no keeper, it refuses, it is not root's or this user's, or it speaks no version
    /// that this build speaks.
    ///
    /// # Blocking
    /// For `patience`, and at most 20 s more.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match Self::try_connect(path) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let may_pass = matches!(
                error,
                ClientError::Connect { .. }
                    | ClientError::Lost(_)
                    | ClientError::Refused { refusal: Refusal::Busy, .. }
            );
            let left = patience.saturating_sub(began.elapsed());
            if !may_pass || left.is_zero() {
                return Err(error);
            }
            std::thread::sleep(pause.min(left));
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// The version of the protocol that both sides speak.
    pub const fn version(&self) -> u16 {
        self.version
    }

    /// How long the keeper holds what no plugin takes.
    pub const fn hold_for(&self) -> Duration {
        self.hold_for
    }

    /// Hands over a duplicate of `fd` with its state, in place of what had the name.
    ///
    /// # Errors
    /// The keeper is full or gone.
    pub fn put(
        &mut self,
        name: EntryName,
        fd: impl AsFd,
        state: &State,
    ) -> Result<(), ClientError> {
        self.done(Request::Put(name), &[fd.as_fd(), state.as_fd()])
    }

    /// Replaces the state of an entry, whole.
    ///
    /// # Errors
    /// There is no such entry, or no keeper.
    pub fn update(&mut self, name: EntryName, state: &State) -> Result<(), ClientError> {
        self.done(Request::Update(name), &[state.as_fd()])
    }

    /// Every entry, in the order of names.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn list(&mut self) -> Result<Vec<Listed>, ClientError> {
        let mut found: Vec<Listed> = Vec::new();
        loop {
            let after = found.last().map(|last| last.name);
            let reply = self.ask(Request::List(after), &[])?;
            let (Reply::Page(page, more), true) = (reply.0, reply.1.is_empty()) else {
                return Err(unexpected());
            };
            // A keeper that goes round in circles must not be followed.
            let rises = page.iter().map(|(name, _)| Some(*name)).is_sorted_by(|a, b| a < b)
                && page.first().is_none_or(|(name, _)| after < Some(*name));
            if !rises || (more && page.is_empty()) {
                return Err(unexpected());
            }
            found
                .extend(page.into_iter().map(|(name, state_length)| Listed { name, state_length }));
            if !more {
                return Ok(found);
            }
        }
    }

    /// Takes an entry: the keeper goes on holding it, for this connection.
    ///
    /// # Errors
    /// There is no such entry, or no keeper.
    pub fn take(&mut self, name: EntryName) -> Result<Kept, ClientError> {
        let (reply, fds) = self.ask(Request::Take(name), &[])?;
        match (reply, <[OwnedFd; 2]>::try_from(fds)) {
            (Reply::Entry(given), Ok([fd, state])) if given == name => {
                let (fd, state) = (Arc::new(fd), Arc::new(State::adopt(state)?));
                Ok(Kept { name, fd, state })
            }
            _ => Err(unexpected()),
        }
    }

    /// Takes every entry. One that the keeper gives up meanwhile is left out.
    ///
    /// # Errors
    /// The keeper is gone.
    pub fn take_all(&mut self) -> Result<Vec<Kept>, ClientError> {
        let mut taken = Vec::new();
        for listed in self.list()? {
            match self.take(listed.name) {
                Ok(kept) => taken.push(kept),
                Err(ClientError::Refused { refusal: Refusal::Unknown, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Has the keeper close its duplicate and forget the state. Unmount first.
    ///
    /// # Errors
    /// There is no such entry, or no keeper.
    pub fn release(&mut self, name: EntryName) -> Result<(), ClientError> {
        self.done(Request::Release(name), &[])
    }

    fn try_connect(path: &Path) -> Result<Self, ClientError> {
        let connected = || -> io::Result<OwnedFd> {
            let kind = SocketType::SEQPACKET;
            let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
            set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok(socket)
        };
        let socket =
            connected().map_err(|error| ClientError::Connect { path: path.to_owned(), error })?;
        let keeper = wire::peer(&socket).map_err(ClientError::Lost)?;
        if !wire::is_trusted(keeper.uid, rustix::process::geteuid().as_raw()) {
            return Err(ClientError::Foreign(keeper.uid));
        }
        let mut client = Self { socket, version: 0, hold_for: Duration::ZERO };
        let (Reply::Greeting(keeper), _) = client.receive()? else { return Err(unexpected()) };
        if VERSIONS.common(keeper).is_none() {
            return Err(ClientError::Versions { keeper, plugin: VERSIONS });
        }
        let (reply, _) = client.ask(Request::Hello(VERSIONS), &[])?;
        let Reply::Welcome { version, hold_for } = reply else { return Err(unexpected()) };
        Ok(Self { version, hold_for: Duration::from_millis(hold_for), ..client })
    }

    fn done(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.ask(request, fds)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    fn ask(
        &mut self,
        request: Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        match wire::send(&self.socket, &request.encode(), fds) {
            Ok(()) => self.receive(),
            Err(error) => Err(ClientError::Lost(error)),
        }
    }

    fn receive(&mut self) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let gone = || ClientError::Lost(io::ErrorKind::UnexpectedEof.into());
        let message = wire::receive(&self.socket).map_err(ClientError::Lost)?.ok_or_else(gone)?;
        match Reply::decode(&message.bytes)? {
            Reply::Failed(refusal, text) => Err(ClientError::Refused { refusal, text }),
            reply => Ok((reply, message.fds)),
        }
    }
}

impl AsFd for Client {
    /// Readable between two calls only when the keeper is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unexpected() -> ClientError {
    super::frame::Malformed("it is no answer to the request").into()
}
