//! The connection of one plugin: greeting, then one answer for each request.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use super::{
    EntryName, State, VERSIONS, Versions,
    frame::{Malformed, Refusal, Reply, Request},
    held::{Full, Held},
    wire::{self, Message, Peer},
};

/// How long a peer may take to say who it is: it keeps others out meanwhile.
const HELLO: Duration = Duration::from_secs(5);

/// A connected plugin.
#[derive(Debug)]
pub(super) struct Lease {
    socket: OwnedFd,
    peer: Peer,
    /// Until when it must have said hello; `None` once it has.
    greeted: Option<Instant>,
}

/// Why a lease ends.
#[derive(Debug)]
pub(super) enum End {
    /// The plugin is gone.
    Closed,
    /// It sent what makes no sense, or does not read what it asked for, or says nothing.
    Broken(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            io::ErrorKind::WouldBlock => Self::Broken("it does not read its answers".to_owned()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<Malformed> for End {
    fn from(error: Malformed) -> Self {
        Self::Broken(error.to_string())
    }
}

impl Lease {
    /// Greets a peer over a socket that does not block.
    ///
    /// # Errors
    /// The peer is gone again.
    pub(super) fn begin(socket: OwnedFd, peer: Peer, now: Instant) -> io::Result<Self> {
        wire::send(&socket, &Reply::Greeting(VERSIONS).encode(), &[])?;
        Ok(Self { socket, peer, greeted: Some(now + HELLO) })
    }

    pub(super) const fn peer(&self) -> Peer {
        self.peer
    }

    /// When the peer must have said who it is.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.greeted
    }

    /// Receives one request and answers it. Call it when the socket is readable.
    ///
    /// # Errors
    /// How the lease ended; the peer was told if it reads.
    pub(super) fn serve(&mut self, held: &mut Held) -> Result<(), End> {
        let message = match wire::receive(&self.socket) {
            Ok(message) => message.ok_or(End::Closed)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.dismiss(Refusal::Malformed, error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        match Request::decode(&message.bytes) {
            Ok(request) => self.answer(request, message, held),
            Err(error) => Err(self.dismiss(Refusal::Malformed, error.to_string())),
        }
    }

    /// Ends the lease of a peer that was silent for too long.
    pub(super) fn expire(&self) -> End {
        self.dismiss(Refusal::Malformed, format!("a hello must come within {} s", HELLO.as_secs()))
    }

    fn answer(&mut self, request: Request, message: Message, held: &mut Held) -> Result<(), End> {
        let mut fds = message.fds.into_iter();
        let given = (fds.next(), fds.next());
        match (request, given, self.greeted) {
            (Request::Hello(versions), (None, None), Some(_)) => self.welcome(versions, held),
            (_, _, Some(_)) => Err(self.misplaced("a hello must come first")),
            (Request::Hello(_), _, None) => Err(self.misplaced("a hello must come once")),
            (Request::Put(name), (Some(fd), Some(state)), None) => self.put(name, fd, state, held),
            (Request::Update(name), (Some(state), None), None) => self.update(name, state, held),
            (Request::List(after), (None, None), None) => {
                let (entries, more) = held.page(after);
                self.reply(&Reply::Page(entries, more), &[])
            }
            (Request::Take(name), (None, None), None) => match held.take(name) {
                Some(fds) => self.reply(&Reply::Entry(name), &fds),
                None => self.unknown(name),
            },
            (Request::Release(name), (None, None), None) => {
                if !held.release(name) {
                    return self.unknown(name);
                }
                tracing::debug!(name = %name, held = held.len(), "released");
                self.reply(&Reply::Done, &[])
            }
            _ => Err(self.misplaced("a request must come with its own descriptors")),
        }
    }

    fn welcome(&mut self, versions: Versions, held: &Held) -> Result<(), End> {
        let Some(version) = VERSIONS.common(versions) else {
            let text =
                format!("the keeper speaks {VERSIONS} of the protocol, the plugin {versions}");
            return Err(self.dismiss(Refusal::Version, text));
        };
        self.greeted = None;
        let Peer { uid, pid } = self.peer;
        tracing::info!(
            peer.uid = uid,
            peer.pid = pid,
            version,
            held = held.len(),
            "plugin is there"
        );
        let hold_for = u64::try_from(held.hold_for().as_millis()).unwrap_or(u64::MAX);
        self.reply(&Reply::Welcome { version, hold_for }, &[])
    }

    fn put(
        &self,
        name: EntryName,
        fd: OwnedFd,
        state: OwnedFd,
        held: &mut Held,
    ) -> Result<(), End> {
        let state = match State::adopt(state) {
            Ok(state) => state,
            Err(error) => return self.refuse(Refusal::State, error.to_string()),
        };
        if let Err(Full) = held.put(name, fd, state) {
            let text = format!("{} descriptors are held, which is the limit", held.capacity());
            return self.refuse(Refusal::Full, text);
        }
        tracing::debug!(name = %name, held = held.len(), "put");
        self.reply(&Reply::Done, &[])
    }

    fn update(&self, name: EntryName, state: OwnedFd, held: &mut Held) -> Result<(), End> {
        let state = match State::adopt(state) {
            Ok(state) => state,
            Err(error) => return self.refuse(Refusal::State, error.to_string()),
        };
        if !held.update(name, state) {
            return self.unknown(name);
        }
        self.reply(&Reply::Done, &[])
    }

    fn unknown(&self, name: EntryName) -> Result<(), End> {
        self.refuse(Refusal::Unknown, format!("nothing is held under {name}"))
    }

    fn refuse(&self, refusal: Refusal, text: String) -> Result<(), End> {
        self.reply(&Reply::Failed(refusal, text), &[])
    }

    fn reply(&self, reply: &Reply, fds: &[BorrowedFd<'_>]) -> Result<(), End> {
        Ok(wire::send(&self.socket, &reply.encode(), fds)?)
    }

    fn misplaced(&self, text: &'static str) -> End {
        self.dismiss(Refusal::Malformed, text.to_owned())
    }

    fn dismiss(&self, refusal: Refusal, text: String) -> End {
        dismiss(&self.socket, refusal, text.clone());
        End::Broken(text)
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Tells a peer why its connection ends. One that is gone, or does not read, is not told.
pub(super) fn dismiss(socket: impl AsFd, refusal: Refusal, text: String) {
    if let Err(error) = wire::send(socket, &Reply::Failed(refusal, text).encode(), &[]) {
        tracing::debug!(%error, "a refused peer was not told");
    }
}
