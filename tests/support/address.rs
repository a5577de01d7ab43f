//! An address for a server that must be told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// A loopback address that is free. The port is none of those that the system gives out by itself,
/// so no connection of another case takes it meanwhile.
pub(crate) fn free_address() -> SocketAddr {
    let ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    let addresses = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    free.next().expect("there are more")
}
