use std::net::IpAddr;

use flannel_core::NetworkConfig;

use super::ranges;

/// An address under which no peer could reach this node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{address} cannot be this node's public address: {reason}; give the address that other nodes reach this one at, or leave it out"
)]
pub struct PublicAddressError {
    address: IpAddr,
    reason: String,
}

/// Checks an address that an operator wants this node to publish.
///
/// # Errors
///
/// [`PublicAddressError`] if no single host is reached at it, or if it belongs to pods.
pub fn check_public_address(
    address: IpAddr,
    config: &NetworkConfig,
) -> Result<(), PublicAddressError> {
    let refused = |reason: &str| Err(PublicAddressError { address, reason: reason.into() });
    // What nodes of both families exchange is the plain IPv4 address.
    match address.to_canonical() {
        canonical if canonical != address => return refused("it is an IPv4 address in disguise"),
        address if address.is_unspecified() => return refused("it stands for no host"),
        address if address.is_loopback() => return refused("it is a loopback address"),
        address if address.is_multicast() => return refused("it is a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => return refused("it is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => return refused("it stands for no host"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => return refused("it is reserved"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            return refused("it is a link-local address");
        }
        _ => {}
    }
    match ranges(config).iter().find(|(range, _)| range.contains(&address)) {
        Some((_, network)) => {
            refused(&format!("it is an address of pods, in the network {network}"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::LeaseAttrs;
    use proptest::prelude::*;

    use super::*;

    fn config() -> NetworkConfig {
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"host-gw"}}"#
            .parse()
            .unwrap()
    }

    fn check(address: &str) -> Result<(), String> {
        check_public_address(address.parse().unwrap(), &config()).map_err(|it| it.to_string())
    }

    #[test]
    fn an_address_that_no_peer_could_use_is_refused() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "255.255.255.255",
            "240.0.0.1",
            "224.0.0.1",
            "ff02::1",
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "10.244.7.1",
            "fd00:10:244:7::1",
            "fe80::1",
            "::ffff:192.0.2.1",
            "::ffff:0.0.0.0",
        ] {
            let error = check(address).unwrap_err();
            assert!(
                error.starts_with(&format!("{} cannot be", address.parse::<IpAddr>().unwrap())),
                "{error}"
            );
        }
        for address in
            ["192.0.2.1", "10.243.255.255", "169.254.7.7", "2001:db8::1", "fd00:10:245::1"]
        {
            assert_eq!(check(address), Ok(()), "{address}");
        }
    }

    proptest! {
        /// What is accepted names one host outside of the pod network, and comes back from a lease as it was.
        #[test]
        fn what_is_accepted_survives_publishing(v4: u32, v6: u128, is_v4: bool) {
            let address = if is_v4 { IpAddr::V4(v4.into()) } else { IpAddr::V6(v6.into()) };
            if check_public_address(address, &config()).is_ok() {
                let one_host = !address.is_unspecified() && !address.is_multicast() && !address.is_loopback();
                prop_assert!(one_host && address.to_canonical() == address);
                let mut attrs = LeaseAttrs::default();
                match address {
                    IpAddr::V4(v4) => attrs.public_ip = Some(v4),
                    IpAddr::V6(v6) => attrs.public_ipv6 = Some(v6),
                }
                prop_assert_eq!(attrs.to_string().parse::<LeaseAttrs>().unwrap(), attrs);
            }
        }
    }
}
