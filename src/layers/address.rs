//! The address that a call comes from: the peer's, or what a proxy that is trusted by name says of
//! the peer before it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

use crate::domain::key::lies_in;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The caller's address, as far as it can be trusted: the right-most address in `x-forwarded-for`
/// that is not a trusted proxy's. Each proxy adds its peer on the right; the caller may have
/// written anything left of that. `None` if it is not an address.
pub(super) fn of_caller(
    peer: Option<SocketAddr>,
    headers: &HeaderMap,
    proxies: &[IpNet],
) -> Option<IpAddr> {
    let mut address = peer?.ip();
    if !lies_in(proxies, address) {
        return Some(address);
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    for hop in lines
        .into_iter()
        .rev()
        .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
    {
        address = parse(hop)?;
        if !lies_in(proxies, address) {
            break;
        }
    }
    Some(address)
}

/// An address, which some proxies write with its port, or in brackets.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.strip_suffix(']'))
        .unwrap_or(hop);
    bare.parse()
        .ok()
        .or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tested, the peer, the header lines, and the expected address.
    type Case = (
        &'static str,
        &'static str,
        &'static [&'static str],
        Option<&'static str>,
    );

    const CASES: [Case; 17] = [
        ("no proxy", "192.0.2.1", &[], Some("192.0.2.1")),
        (
            "a stranger who claims",
            "192.0.2.1",
            &["10.0.0.1"],
            Some("192.0.2.1"),
        ),
        ("a proxy", "10.0.0.1", &["192.0.2.9"], Some("192.0.2.9")),
        (
            "a proxy that says nothing",
            "10.0.0.1",
            &[],
            Some("10.0.0.1"),
        ),
        (
            "what the caller wrote is left of what the proxy wrote",
            "10.0.0.1",
            &["203.0.113.5, 192.0.2.9"],
            Some("192.0.2.9"),
        ),
        (
            "in separate header lines",
            "10.0.0.1",
            &["203.0.113.5", "192.0.2.9"],
            Some("192.0.2.9"),
        ),
        (
            "two proxies",
            "10.0.0.1",
            &["203.0.113.5,192.0.2.9, 10.0.0.2"],
            Some("192.0.2.9"),
        ),
        (
            "proxies only",
            "10.0.0.1",
            &["10.0.0.3,10.0.0.2"],
            Some("10.0.0.3"),
        ),
        (
            "with a port",
            "10.0.0.1",
            &["192.0.2.9:1234"],
            Some("192.0.2.9"),
        ),
        (
            "of IPv6",
            "2001:db8::1",
            &["[2001:db9::1]:1"],
            Some("2001:db9::1"),
        ),
        (
            "of IPv6 in brackets",
            "2001:db8::1",
            &["[2001:db9::1]"],
            Some("2001:db9::1"),
        ),
        (
            "of IPv6 with a zone",
            "2001:db8::1",
            &["fe80::1%eth0"],
            None,
        ),
        (
            "a proxy of IPv4 over IPv6",
            "10.0.0.1",
            &["192.0.2.9, ::ffff:10.0.0.2"],
            Some("192.0.2.9"),
        ),
        ("nothing after a comma", "10.0.0.1", &["192.0.2.9,"], None),
        (
            "of IPv4 over IPv6",
            "::ffff:10.0.0.1",
            &["192.0.2.9"],
            Some("192.0.2.9"),
        ),
        ("no address", "10.0.0.1", &["192.0.2.9, unknown"], None),
        ("no text", "10.0.0.1", &[""], None),
    ];

    #[test]
    fn only_what_trusted_proxies_say_counts_and_of_that_only_the_right_most_stranger() {
        let proxies: Vec<IpNet> = ["10.0.0.0/8", "2001:db8::/32"]
            .map(|network| network.parse().expect("a network"))
            .to_vec();
        for (case, peer, lines, expected) in CASES {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().expect("a header"));
            }
            let peer = Some(SocketAddr::new(peer.parse().expect("an address"), 1));
            let expected = expected.map(|address| address.parse::<IpAddr>().expect("an address"));
            assert_eq!(of_caller(peer, &headers, &proxies), expected, "{case}");
        }
        assert_eq!(of_caller(None, &HeaderMap::new(), &proxies), None);
    }
}
