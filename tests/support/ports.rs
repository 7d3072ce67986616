//! Ports for servers that come back to theirs.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

/// Ports from here on, below those that Linux gives to outgoing connections (32768 and up): one of these would hold a port, for a
/// moment or for long, while its server is away.
const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;
/// So many taken ones in a row are no chance.
const TRIES: usize = 100;

/// A free one on loopback; none when so many that were tried are taken.
pub(crate) fn lasting() -> Option<u16> {
    let random = |_| u16::try_from(FIRST + RandomState::new().hash_one(()) % COUNT).ok();
    (0..TRIES)
        .filter_map(random)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}
