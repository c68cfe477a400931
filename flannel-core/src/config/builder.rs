//! A network configuration made in code.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::{BackendConfig, ConfigError, Keys, NetworkConfig, Written};
use crate::cidr::Cidr;

/// Makes a [`NetworkConfig`] in code. What is not set is derived as from flannel's JSON.
///
/// # Examples
///
/// ```
/// use flannel_core::{BackendConfig, NetworkConfig};
/// use serde_json::json;
///
/// let config = NetworkConfig::builder()
///     .ipv4("10.244.0.0/16".parse()?)
///     .ipv4_subnet_len(26)
///     .ipv6("fd00:10:244::/48".parse()?)
///     .backend(BackendConfig::new("vxlan", &json!({"VNI": 7}))?)
///     .build()?;
/// assert_eq!(config.ipv4().map(|range| range.subnet_len()), Some(26));
/// assert_eq!(config.backend().options().integer("VNI", 1..=9), Ok(Some(7)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct NetworkConfigBuilder {
    ipv4: Option<Written<Ipv4Network>>,
    ipv6: Option<Written<Ipv6Network>>,
    enable_nftables: Option<bool>,
    backend: BackendConfig,
}

impl NetworkConfigBuilder {
    /// Enables IPv4 with this address block.
    #[must_use]
    pub fn ipv4(mut self, network: Ipv4Network) -> Self {
        self.ipv4.get_or_insert_default().network = Some(aligned(network));
        self
    }

    /// The leading bits of each IPv4 subnet.
    #[must_use]
    pub fn ipv4_subnet_len(mut self, len: u8) -> Self {
        self.ipv4.get_or_insert_default().subnet_len = Some(len.into());
        self
    }

    /// The first and the last IPv4 subnet that nodes get, by their first addresses.
    #[must_use]
    pub fn ipv4_range(mut self, first: Ipv4Addr, last: Ipv4Addr) -> Self {
        let ipv4 = self.ipv4.get_or_insert_default();
        (ipv4.subnet_min, ipv4.subnet_max) = (Some(first), Some(last));
        self
    }

    /// Enables IPv6 with this address block.
    #[must_use]
    pub fn ipv6(mut self, network: Ipv6Network) -> Self {
        self.ipv6.get_or_insert_default().network = Some(aligned(network));
        self
    }

    /// The leading bits of each IPv6 subnet.
    #[must_use]
    pub fn ipv6_subnet_len(mut self, len: u8) -> Self {
        self.ipv6.get_or_insert_default().subnet_len = Some(len.into());
        self
    }

    /// The first and the last IPv6 subnet that nodes get, by their first addresses.
    #[must_use]
    pub fn ipv6_range(mut self, first: Ipv6Addr, last: Ipv6Addr) -> Self {
        let ipv6 = self.ipv6.get_or_insert_default();
        (ipv6.subnet_min, ipv6.subnet_max) = (Some(first), Some(last));
        self
    }

    /// Asks for nftables (`true`) or iptables (`false`) on all nodes.
    #[must_use]
    pub fn enable_nftables(mut self, nftables: bool) -> Self {
        self.enable_nftables = Some(nftables);
        self
    }

    /// The backend; flannel's default, `udp`, unless this is called.
    #[must_use]
    pub fn backend(mut self, backend: BackendConfig) -> Self {
        self.backend = backend;
        self
    }

    /// The configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as for flannel's JSON with the same members.
    pub fn build(self) -> Result<NetworkConfig, ConfigError> {
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(ConfigError::NoFamily);
        }
        Ok(NetworkConfig {
            ipv4: self.ipv4.map(|ipv4| Keys::IPV4.range(ipv4)).transpose()?,
            ipv6: self.ipv6.map(|ipv6| Keys::IPV6.range(ipv6)).transpose()?,
            enable_nftables: self.enable_nftables,
            backend: self.backend,
        })
    }
}

fn aligned<C: Cidr>(block: C) -> C {
    C::from_bits(block.bits(), block.prefix_len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_built_config_equals_the_parsed_one() {
        let built = NetworkConfig::builder()
            .ipv4("10.3.0.7/16".parse().unwrap())
            .ipv4_subnet_len(25)
            .ipv4_range([10, 3, 1, 0].into(), [10, 3, 9, 128].into())
            .ipv6("fd00:3::/48".parse().unwrap())
            .ipv6_subnet_len(60)
            .ipv6_range("fd00:3:0:10::".parse().unwrap(), "fd00:3:0:20::".parse().unwrap())
            .enable_nftables(true)
            .backend(BackendConfig::new("host-gw", &json!({})).unwrap())
            .build()
            .unwrap();
        let parsed: NetworkConfig = r#"{"Network":"10.3.0.0/16","SubnetLen":25,"SubnetMin":"10.3.1.0","SubnetMax":"10.3.9.128",
            "EnableIPv6":true,"IPv6Network":"fd00:3::/48","IPv6SubnetLen":60,"IPv6SubnetMin":"fd00:3:0:10::",
            "IPv6SubnetMax":"fd00:3:0:20::","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#
            .parse()
            .unwrap();
        assert_eq!(built, parsed);
        let usual = NetworkConfig::builder().ipv6("fd00:3::/48".parse().unwrap()).build().unwrap();
        assert_eq!((usual.ipv4(), usual.backend().kind()), (None, "udp"));
    }

    #[test]
    fn what_json_cannot_say_cannot_be_built() {
        let builder = NetworkConfig::builder();
        assert_eq!(builder.clone().build(), Err(ConfigError::NoFamily));
        let builder = builder.ipv4("10.3.0.0/16".parse().unwrap());
        let error = builder.clone().ipv4_subnet_len(17).build().unwrap_err();
        assert!(error.to_string().contains("SubnetLen is 17"), "{error}");
        assert!(builder.ipv4_range([10, 4, 0, 0].into(), [10, 4, 1, 0].into()).build().is_err());
        assert!(BackendConfig::new("vxlan", &7).is_err());
        assert!(BackendConfig::new("vxlan", &json!({"Type": "udp"})).unwrap().kind() == "vxlan");
    }
}
