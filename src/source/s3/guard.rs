//! Where a URL from a volume's attributes must not lead.
//!
//! The policy says which hosts may be named, by patterns. A pattern with a wildcard allows names
//! that somebody else may register, so the address counts as well: a pod must not make the node
//! plugin call the node itself, or the cloud's metadata service. Names are resolved once, here, and
//! the connection goes to an address that was checked. A host that the policy spells out is the
//! administrator's own choice.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use url::{Host, Url};

/// The services of clouds for their machines: AWS over IPv6, Alibaba, Azure, Oracle. The others are
/// link-local.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Resolves names to addresses that a pod may name.
#[derive(Debug, Clone)]
pub(super) struct Guarded;

impl ResolveDns for Guarded {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let found = tokio::net::lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            let allowed: Vec<IpAddr> = found
                .map(|address| address.ip())
                .filter(|address| !is_forbidden(*address))
                .collect();
            if allowed.is_empty() {
                let text = format!("dns error: {name:?} has no address that a volume may name");
                return Err(ResolveDnsError::new(io::Error::other(text)));
            }
            Ok(allowed)
        })
    }
}

/// Whether the URL names a forbidden address itself, so that nothing is resolved.
pub(super) fn names_forbidden_address(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_forbidden(address.into()),
        Some(Host::Ipv6(address)) => is_forbidden(address.into()),
        Some(Host::Domain(_)) | None => false,
    }
}

fn is_forbidden(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        // Ways to write an IPv4 address: mapped, compatible, and through NAT64.
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.to_ipv4().is_some()
                || v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]
        }
    };
    local
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("127.0.0.1", true)]
    #[test_case("127.8.8.8", true)]
    #[test_case("0.0.0.0", true)]
    #[test_case("169.254.169.254", true)]
    #[test_case("100.100.100.200", true)]
    #[test_case("168.63.129.16", true)]
    #[test_case("192.0.0.192", true)]
    #[test_case("64:ff9b::a9fe:a9fe", true; "metadata through NAT64")]
    #[test_case("::a9fe:a9fe", true; "an address compatible with IPv4")]
    #[test_case("255.255.255.255", true)]
    #[test_case("::1", true)]
    #[test_case("::", true)]
    #[test_case("fe80::1", true)]
    #[test_case("::ffff:10.0.0.1", true)]
    #[test_case("fd00:ec2::254", true)]
    #[test_case("10.0.0.1", false)]
    #[test_case("192.0.2.1", false)]
    #[test_case("2001:db8::1", false)]
    fn addresses(text: &str, forbidden: bool) {
        assert_eq!(is_forbidden(text.parse().unwrap()), forbidden);
    }

    #[test]
    fn a_number_in_any_spelling_is_an_address() {
        for text in ["http://2130706433", "http://0x7f.1", "http://[::ffff:7f00:1]:9000"] {
            assert!(names_forbidden_address(&Url::parse(text).unwrap()), "{text}");
        }
        assert!(!names_forbidden_address(&Url::parse("http://minio.spark:9000").unwrap()));
    }

    #[tokio::test]
    async fn a_name_of_the_node_itself_is_refused() {
        let error = Guarded.resolve_dns("localhost").await.unwrap_err();
        assert!(crate::failure::full_message(&error).contains("no address that a volume may name"));
    }
}
