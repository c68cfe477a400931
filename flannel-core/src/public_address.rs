//! Which addresses a node can publish.

use std::net::IpAddr;

use crate::{config::NetworkConfig, lease::LeaseAttrs};

/// An address, or other attributes, that cannot be published.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableAddress {
    /// No peer could reach this node at it.
    #[error(
        "{address} cannot be this node's public address: it is {what}; use an address of the uplink that peers can reach"
    )]
    Address {
        /// The address.
        address: IpAddr,
        /// What kind of address it is.
        what: String,
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
fn check_public_address(address: IpAddr) -> Result<(), UnusableAddress> {
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
    Err(UnusableAddress::Address { address, what: what.into() })
}

/// Whether an operator can have a node of this network publish `address`: peers can reach a node at it, and it is not the
/// address of a pod.
///
/// Link-local IPv4 addresses (169.254.0.0/16) pass: some clusters use them on purpose. Those of IPv6 do not, because they mean
/// nothing without an interface.
///
/// # Errors
///
/// [`UnusableAddress::Address`], saying what kind of address it is.
pub fn check_chosen_address(
    address: IpAddr,
    config: &NetworkConfig,
) -> Result<(), UnusableAddress> {
    check_public_address(address)?;
    match config.pod_network(address) {
        None => Ok(()),
        Some(network) => {
            let what = format!("an address of pods, in the network {network}");
            Err(UnusableAddress::Address { address, what })
        }
    }
}

/// Whether `attrs` can be published: peers can reach a node at each address, and read what was written. An address of the pod
/// network passes, because an uplink may have no other.
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
    use crate::lease::{MAX_LEASE_BYTES, RawJson};

    fn config() -> NetworkConfig {
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:4::/48"}"#
            .parse()
            .unwrap()
    }

    fn attrs(address: IpAddr) -> LeaseAttrs {
        let (mut v4, mut v6) = (None, None);
        match address {
            IpAddr::V4(address) => v4 = Some(address),
            IpAddr::V6(address) => v6 = Some(address),
        }
        LeaseAttrs { public_ip: v4, public_ipv6: v6, ..LeaseAttrs::default() }
    }

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
            ("10.244.7.1", "pods"),
            ("10.244.255.255", "pods"),
            ("fd00:4:0:7::1", "pods"),
        ] {
            let address = address.parse().unwrap();
            let error = check_chosen_address(address, &config()).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(check_published(&attrs(address)).is_ok(), what == "pods", "{address}");
        }
        for address in
            ["192.0.2.1", "10.243.255.255", "10.245.0.0", "169.254.3.4", "2001:db8::1", "fd00:5::1"]
        {
            let address = address.parse().unwrap();
            assert_eq!(check_chosen_address(address, &config()), Ok(()));
            assert_eq!(check_published(&attrs(address)), Ok(()));
        }
    }

    #[test]
    fn what_peers_would_read_otherwise_is_refused() {
        let with = |data: &str| LeaseAttrs {
            backend_data: Some(RawJson::new(data).unwrap()),
            ..attrs(Ipv4Addr::new(192, 0, 2, 1).into())
        };
        assert_eq!(check_published(&with(r#"{"VNI":1}"#)), Ok(()));
        let long = format!(r#""{}""#, "x".repeat(MAX_LEASE_BYTES));
        for (data, read) in [("null", r#""PublicIP":"192.0.2.1""#), (&long, "expected at most")] {
            let error = check_published(&with(data)).unwrap_err();
            let UnusableAddress::RoundTrip { read: actual, .. } = &error else { panic!("{error}") };
            assert!(actual.contains(read), "{actual}");
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
