//! Ports for servers that restart on the same port.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;

/// Below the ports that Linux gives to outgoing connections (32768 and up), one of which could take
/// the port of a stopped server.
const PORTS: Range<u16> = 20_000..32_000;
/// Attempts before the search gives up.
const MAX_ATTEMPTS: usize = 100;

/// A free port on loopback, or `None` if every attempt found a port in use.
pub(crate) fn lasting() -> Option<u16> {
    (0..MAX_ATTEMPTS)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}
