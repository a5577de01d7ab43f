//! One frame with its descriptors, sent or received.
//!
//! Source: unix(7) (`SCM_RIGHTS`, `SOCK_SEQPACKET`), cmsg(3), recv(2).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::MAX_FRAME;

/// How many descriptors a frame carries at most.
const MOST: usize = 2;

/// A frame and what came with it. Descriptors that nobody takes out are closed.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// Sends one frame with at most two descriptors, which stay the caller's too.
///
/// # Errors
/// The peer is gone, or has no room (`WouldBlock`, where the socket does not block). No part was
/// sent.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("a frame carries at most two descriptors"));
    }
    let sent =
        retry(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    debug_assert_eq!(sent, bytes.len(), "a packet is sent whole");
    Ok(())
}

/// Receives one frame; `None` when the peer is gone. Its descriptors are closed on exec from the
/// start.
///
/// # Errors
/// `InvalidData` for a frame that is too long or has too many descriptors; what recvmsg(2) answers.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut bytes = vec![0; MAX_FRAME];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The space is rounded up, so that the kernel may let a third descriptor through.
    let is_cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if is_cut || fds.len() > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too large"));
    }
    // A packet without bytes looks like the end, and no frame is empty.
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some(Message { bytes, fds }))
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// 0 where the process is of another pid namespace.
    pub(super) pid: i32,
}

/// The process that connected, or that listens.
///
/// # Errors
/// What getsockopt(2) answers.
pub(super) fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = getsockopt(&socket.as_fd(), PeerCredentials)?;
    Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
}

/// Whether a process of user `peer` may speak with one of user `own`.
pub(super) const fn is_trusted(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            answer => return Ok(answer?),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::{
        io::fcntl_getfd,
        net::{AddressFamily, SocketFlags, SocketType, socketpair},
    };
    use test_case::test_case;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_frame_arrives_with_its_descriptors_closed_on_exec() {
        let (a, b) = pair();
        let (read, write) = std::io::pipe().unwrap();
        send(&a, b"frame", &[read.as_fd(), write.as_fd()]).unwrap();
        let message = receive(&b).unwrap().unwrap();
        assert_eq!(message.bytes, b"frame");
        assert_eq!(message.fds.len(), 2);
        for fd in &message.fds {
            assert!(fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        drop(a);
        assert!(receive(&b).unwrap().is_none());
    }

    #[test]
    fn too_much_of_anything_is_refused_and_closed() {
        let (a, b) = pair();
        send(&a, &vec![1; MAX_FRAME + 1], &[]).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (read, write) = std::io::pipe().unwrap();
        let fds = [write.as_fd(); 3];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // All three were closed: nobody is left to write.
        drop(write);
        assert_eq!(io::read_to_string(read).unwrap(), "");
    }

    #[test_case(0, 0 => true)]
    #[test_case(0, 1000 => true)]
    #[test_case(1000, 1000 => true)]
    #[test_case(65534, 0 => false)]
    #[test_case(1001, 1000 => false)]
    fn root_and_oneself_are_trusted(peer: u32, own: u32) -> bool {
        is_trusted(peer, own)
    }
}
