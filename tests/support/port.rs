//! Ports for servers that come back to theirs.

use std::hash::{BuildHasher, RandomState};
use std::io::Result;
use std::net::{Ipv4Addr, TcpListener};

/// Ports from here on, below those that Linux gives to outgoing connections (32768 and up): one of these would hold a port, for a
/// moment or for long, while its server is away.
const FIRST: u64 = 20_000;
const COUNT: u64 = 12_000;
/// So many taken ones in a row are no chance.
const TRIES: usize = 100;

/// A free one on loopback.
///
/// # Errors
/// Why the last one that was tried cannot be had.
pub fn lasting() -> Result<u16> {
    let random = || u16::try_from(FIRST + RandomState::new().hash_one(()) % COUNT).unwrap_or_default();
    let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(|_| port);
    let mut tried = free(random());
    for _ in 1..TRIES {
        if tried.is_ok() {
            break;
        }
        tried = free(random());
    }
    tried
}
