//! Which addresses a node can publish.

use std::net::IpAddr;

use crate::lease::LeaseAttrs;

/// An address, or other attributes, that cannot be published.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableAddress {
    /// No peer could reach this node at it.
    #[error(
        "{address} cannot be the public address of a node: it is {what}; use an address of the uplink that peers can reach"
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// What kind of address it is.
        what: &'static str,
    },
    /// The attributes would be read back as others, so that publishing them would never end.
    #[error("{published} would be read back as {read}")]
    RoundTrip {
        /// What was to be published.
        published: String,
        /// What peers would read; an error if they could not.
        read: String,
    },
}

/// Whether peers can reach a node at `address`, as far as the address alone tells.
///
/// Link-local IPv4 addresses (169.254.0.0/16) pass: some clusters use them on purpose. Those of IPv6 do not, because they mean
/// nothing without an interface.
///
/// # Errors
///
/// [`UnusableAddress::Address`], saying what kind of address it is.
pub fn check_public_address(address: IpAddr) -> Result<(), UnusableAddress> {
    let what = match address {
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => "a reserved address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        _ => return Ok(()),
    };
    Err(UnusableAddress::Address { address, what })
}

/// Whether `attrs` can be published: each address passes [`check_public_address`], and peers read what was
/// written.
///
/// # Errors
///
/// [`UnusableAddress`].
pub fn check_published(attrs: &LeaseAttrs) -> Result<(), UnusableAddress> {
    let ipv4 = attrs.public_ip.map(IpAddr::V4);
    for address in ipv4.into_iter().chain(attrs.public_ipv6.map(IpAddr::V6)) {
        check_public_address(address)?;
    }
    let read = attrs.to_string().parse::<LeaseAttrs>();
    if read.as_ref() == Ok(attrs) {
        return Ok(());
    }
    let read = read.map_or_else(|error| error.to_string(), |read| read.to_string());
    Err(UnusableAddress::RoundTrip { published: attrs.to_string(), read })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_that_cannot_serve_is_refused_by_name() {
        for (address, what) in [
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("224.0.0.5", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("240.0.0.1", "reserved"),
            ("0.1.2.3", "reserved"),
            ("fe80::1", "link-local"),
            ("::ffff:192.0.2.1", "IPv4-mapped"),
        ] {
            let error = check_public_address(address.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        for address in ["192.0.2.1", "169.254.3.4", "10.4.0.1", "2001:db8::1", "fd00:4::1"] {
            assert_eq!(check_public_address(address.parse().unwrap()), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn what_passes_is_read_back_as_it_was_published(
            v4 in proptest::option::of(prop_oneof![Just(0), Just(u32::MAX), any::<u32>()]),
            v6 in proptest::option::of(prop_oneof![Just(0), Just(1), any::<u128>()]),
            backend_type in "[ -~é<>&]{0,20}",
        ) {
            let attrs = LeaseAttrs {
                public_ip: v4.map(Ipv4Addr::from),
                public_ipv6: v6.map(Ipv6Addr::from),
                backend_type: backend_type.into(),
                ..LeaseAttrs::default()
            };
            let survives = attrs.to_string().parse().as_ref() == Ok(&attrs);
            prop_assert!(survives || check_published(&attrs).is_err());
            if v4 == Some(0) || v6 == Some(0) {
                prop_assert!(!survives, "flannel reads it as no address");
            }
        }
    }
}
