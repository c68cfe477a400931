//! The network configuration: flannel's JSON, read into a value that cannot be wrong.

mod adopt;
mod backend_config;
mod builder;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{
    Deserialize, Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};
use serde_json::value::RawValue;

use crate::{
    cidr::{Cidr, SubnetRange, host_mask, parse_cidr},
    fields::{FieldError, Fields, invalid},
    subnet::Subnet,
};

pub use adopt::Adopted;
pub(crate) use adopt::conflict;
pub use backend_config::BackendConfig;
pub use builder::NetworkConfigBuilder;

/// What all nodes of a network agree on: the address space, how it is cut, and the backend.
///
/// Parsed with [`str::parse`] from flannel's JSON, or [made in code](Self::builder), and printed by serde in the same form. At least one family is enabled, and
/// every range is aligned, ordered and inside of its network.
///
/// # Examples
///
/// ```
/// use flannel_core::NetworkConfig;
///
/// let config: NetworkConfig = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#.parse()?;
/// let range = config.ipv4().unwrap();
/// assert_eq!((range.subnet_len(), range.count()), (24, 255));
/// assert_eq!(config.backend().kind(), "host-gw");
/// # Ok::<(), flannel_core::ConfigError>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "Box<RawValue>")]
pub struct NetworkConfig {
    ipv4: Option<SubnetRange<Ipv4Network>>,
    ipv6: Option<SubnetRange<Ipv6Network>>,
    enable_nftables: Option<bool>,
    backend: BackendConfig,
}

/// Why a text is not a usable network configuration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A member is missing, malformed, or does not fit the others.
    #[error("network config: {0}")]
    Field(FieldError),
    /// Both families are switched off.
    #[error("network config: EnableIPv4 and EnableIPv6 are both false, expected at least one true")]
    NoFamily,
}

impl From<FieldError> for ConfigError {
    fn from(error: FieldError) -> Self {
        Self::Field(error)
    }
}

impl NetworkConfig {
    /// Starts a configuration that is made in code.
    pub fn builder() -> NetworkConfigBuilder {
        NetworkConfigBuilder::default()
    }

    /// The members of the object in `text` that are no part of a configuration: they may be misspelled. The members of `Backend` are
    /// the backend's business.
    pub fn unknown_keys(text: &str) -> Vec<String> {
        let fields = Fields::parse(text).unwrap_or_default();
        let unknown = |name: &&str| !KEYS.iter().any(|known| known.eq_ignore_ascii_case(name));
        fields.names().filter(unknown).map(Into::into).collect()
    }

    /// Reads the configuration of a network whose subnets are chosen by a cluster: what it says about their size and range does not
    /// count, as with flannel's Kubernetes subnet manager.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as when it is parsed.
    pub fn of_cluster(text: &str) -> Result<Self, ConfigError> {
        Self::read(text, true)
    }

    fn read(text: &str, is_clusters: bool) -> Result<Self, ConfigError> {
        let fields = Fields::parse(text)?;
        let wanted4 = fields.boolean("EnableIPv4", true)?;
        let wanted6 = fields.boolean("EnableIPv6", false)?;
        // Malformed members are refused even where the family is off, as flannel does.
        let mut ipv4 = Keys::IPV4.read(&fields, |text| text.parse::<Ipv4Addr>().ok())?;
        let mut ipv6 = Keys::IPV6.read(&fields, |text| text.parse::<Ipv6Addr>().ok())?;
        if is_clusters {
            ipv4 = Written { network: ipv4.network, ..Written::default() };
            ipv6 = Written { network: ipv6.network, ..Written::default() };
        }
        if !wanted4 && !wanted6 {
            return Err(ConfigError::NoFamily);
        }
        Ok(Self {
            ipv4: wanted4.then(|| Keys::IPV4.range(ipv4)).transpose()?,
            ipv6: wanted6.then(|| Keys::IPV6.range(ipv6)).transpose()?,
            enable_nftables: match fields.raw("EnableNFTables") {
                None => None,
                Some(_) => Some(fields.boolean("EnableNFTables", false)?),
            },
            backend: BackendConfig::read(fields.present("Backend"))?,
        })
    }

    /// The IPv4 subnets, if IPv4 is enabled.
    pub fn ipv4(&self) -> Option<&SubnetRange<Ipv4Network>> {
        self.ipv4.as_ref()
    }

    /// The IPv6 subnets, if IPv6 is enabled.
    pub fn ipv6(&self) -> Option<&SubnetRange<Ipv6Network>> {
        self.ipv6.as_ref()
    }

    /// Whether the cluster asks for nftables (`true`) or iptables (`false`); `None` if it leaves that to each node.
    pub fn enable_nftables(&self) -> Option<bool> {
        self.enable_nftables
    }

    /// Which backend to use, with its options.
    pub fn backend(&self) -> &BackendConfig {
        &self.backend
    }

    /// The same with a sign in the place of each secret in the backend's options, for logs and documents. What is serialized has
    /// them, since it is what stores are given.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        Self { backend: self.backend.without_secrets(), ..self.clone() }
    }

    /// Where pods have their addresses: all subnets that nodes may get, and the network that they are in.
    pub fn pod_ranges(&self) -> Vec<(RangeInclusive<IpAddr>, IpNetwork)> {
        let ipv4 = self.ipv4.map(|range| {
            (range.subnet_min().into()..=range.last_address().into(), range.network().into())
        });
        let ipv6 = self.ipv6.map(|range| {
            (range.subnet_min().into()..=range.last_address().into(), range.network().into())
        });
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// The network of the subnets that nodes may get, if `address` lies in one of them.
    pub fn pod_network(&self, address: IpAddr) -> Option<IpNetwork> {
        let mut ranges = self.pod_ranges().into_iter();
        ranges.find_map(|(range, network)| range.contains(&address).then_some(network))
    }

    /// Whether `subnet` is one that a node may hold: its families are exactly the enabled ones, each in range and of the right size.
    pub fn admits(&self, subnet: &Subnet) -> bool {
        fits(self.ipv4.as_ref(), subnet.ipv4()) && fits(self.ipv6.as_ref(), subnet.ipv6())
    }
}

fn fits<C: Cidr>(range: Option<&SubnetRange<C>>, block: Option<C>) -> bool {
    match (range, block) {
        (Some(range), Some(block)) => range.contains(block),
        (None, None) => true,
        _ => false,
    }
}

impl FromStr for NetworkConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        Self::read(text, false)
    }
}

impl TryFrom<Box<RawValue>> for NetworkConfig {
    type Error = ConfigError;

    fn try_from(json: Box<RawValue>) -> Result<Self, ConfigError> {
        json.get().parse()
    }
}

impl Serialize for NetworkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("EnableIPv4", &self.ipv4.is_some())?;
        map.serialize_entry("EnableIPv6", &self.ipv6.is_some())?;
        if let Some(nftables) = self.enable_nftables {
            map.serialize_entry("EnableNFTables", &nftables)?;
        }
        if let Some(range) = &self.ipv4 {
            Keys::IPV4.serialize(range, &mut map)?;
        }
        if let Some(range) = &self.ipv6 {
            Keys::IPV6.serialize(range, &mut map)?;
        }
        if let Some(json) = self.backend.json() {
            let raw: &RawValue = serde_json::from_str(json).map_err(S::Error::custom)?;
            map.serialize_entry("Backend", raw)?;
        }
        map.end()
    }
}

/// The names of one family's members, and flannel's limits for it.
struct Keys {
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    family: &'static str,
    /// The network and the members whose decoders in flannel refuse `null`; others read it as absent.
    never_null: &'static [&'static str],
    /// Leading bits of the smallest network that can be cut, as in flannel's `CheckNetworkConfig`.
    longest_network: u8,
    /// Leading bits of the smallest subnet.
    longest_subnet: u8,
    /// Leading bits of a subnet if nothing is said and the network has room.
    usual_subnet: u8,
}

/// One family's members as written; `None` where absent or all zero, which flannel treats alike.
#[derive(Clone, Debug)]
struct Written<C: Cidr> {
    network: Option<C>,
    subnet_len: Option<u64>,
    subnet_min: Option<C::Address>,
    subnet_max: Option<C::Address>,
}

impl<C: Cidr> Default for Written<C> {
    fn default() -> Self {
        Self { network: None, subnet_len: None, subnet_min: None, subnet_max: None }
    }
}

impl Keys {
    const IPV4: Self = Self {
        network: "Network",
        subnet_len: "SubnetLen",
        subnet_min: "SubnetMin",
        subnet_max: "SubnetMax",
        family: "IPv4",
        never_null: &["Network", "SubnetMin", "SubnetMax"],
        longest_network: 28,
        longest_subnet: 30,
        usual_subnet: 24,
    };

    const IPV6: Self = Self {
        network: "IPv6Network",
        subnet_len: "IPv6SubnetLen",
        subnet_min: "IPv6SubnetMin",
        subnet_max: "IPv6SubnetMax",
        family: "IPv6",
        never_null: &["IPv6Network"],
        longest_network: 124,
        longest_subnet: 126,
        usual_subnet: 64,
    };

    fn read<C: Cidr>(
        &self,
        fields: &Fields,
        address: impl Fn(&str) -> Option<C::Address>,
    ) -> Result<Written<C>, FieldError> {
        let block = format!("an {} block such as {}", self.family, self.example());
        let single = format!("an {} address", self.family);
        for (key, expected) in self.never_null.iter().zip([&block, &single, &single]) {
            if fields.present(key) == Some("null") {
                return Err(invalid(key, "null", expected));
            }
        }
        let bound = |key: &str| {
            let bound = fields.parsed(key, &single, &address)?;
            Ok::<_, FieldError>(bound.filter(|bound| C::address_bits(*bound) != 0))
        };
        Ok(Written {
            network: fields
                .parsed(self.network, &block, |text| parse_cidr::<C>(text, &address))?
                .filter(|network| (network.bits(), network.prefix_len()) != (0, 0)),
            subnet_len: fields
                .integer(self.subnet_len, 0..=u64::from(u32::MAX))?
                .filter(|len| *len != 0),
            subnet_min: bound(self.subnet_min)?,
            subnet_max: bound(self.subnet_max)?,
        })
    }

    /// Flannel's derivation of what is not written, and its checks.
    fn range<C: Cidr>(&self, written: Written<C>) -> Result<SubnetRange<C>, FieldError> {
        let network = written.network.ok_or_else(|| {
            let expected = format!("an {} block such as {}", self.family, self.example());
            invalid(self.network, "missing", expected)
        })?;
        let subnet_len = self.subnet_len(network, written.subnet_len)?;
        let size = host_mask::<C>(subnet_len) + 1;

        // The first subnet stays unused by default, because its address is that of the network.
        let first = written.subnet_min.map_or_else(|| network.bits() + size, C::address_bits);
        let last =
            written.subnet_max.map_or_else(|| network.last_bits() - (size - 1), C::address_bits);
        for (key, bound) in [(self.subnet_min, first), (self.subnet_max, last)] {
            let shown = C::address(bound).to_string();
            if !(network.bits()..=network.last_bits()).contains(&bound) {
                return Err(invalid(key, &shown, format!("an address in {network}")));
            }
            if bound & (size - 1) != 0 {
                let before = C::from_bits(bound, subnet_len);
                return Err(invalid(
                    key,
                    &shown,
                    format!("the first of a /{subnet_len} subnet such as {before}"),
                ));
            }
        }
        if first > last {
            let expected = format!("at most {} = {}", self.subnet_max, C::address(last));
            return Err(invalid(self.subnet_min, &C::address(first).to_string(), expected));
        }
        Ok(SubnetRange::new(network, subnet_len, first, last))
    }

    /// The written length if the network has room for four subnets of it, else flannel's default for the network.
    fn subnet_len<C: Cidr>(&self, network: C, written: Option<u64>) -> Result<u8, FieldError> {
        let shortest = network.prefix_len() + 2;
        match written {
            Some(len) => {
                let valid = u8::try_from(len)
                    .ok()
                    .filter(|len| (shortest..=self.longest_subnet).contains(len));
                valid.ok_or_else(|| {
                    let expected = if shortest <= self.longest_subnet {
                        format!(
                            "{shortest} to {}, so that {network} holds four subnets",
                            self.longest_subnet
                        )
                    } else {
                        format!("a larger {} than {network}", self.network)
                    };
                    invalid(self.subnet_len, &len.to_string(), expected)
                })
            }
            None if network.prefix_len() > self.longest_network => {
                let expected = format!("a block of /{} or larger", self.longest_network);
                Err(invalid(self.network, &network.to_string(), expected))
            }
            None => Ok(shortest.max(self.usual_subnet)),
        }
    }

    fn example(&self) -> &'static str {
        if self.family == "IPv4" { "10.244.0.0/16" } else { "fd00:10:244::/48" }
    }

    fn serialize<C: Cidr, M: SerializeMap>(
        &self,
        range: &SubnetRange<C>,
        map: &mut M,
    ) -> Result<(), M::Error> {
        map.serialize_entry(self.network, &range.network().to_string())?;
        map.serialize_entry(self.subnet_len, &range.subnet_len())?;
        map.serialize_entry(self.subnet_min, &range.subnet_min().to_string())?;
        map.serialize_entry(self.subnet_max, &range.subnet_max().to_string())
    }
}

/// All members, in flannel's spelling.
const KEYS: [&str; 12] = [
    "Backend",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMax",
    "IPv6SubnetMin",
    "Network",
    "SubnetLen",
    "SubnetMax",
    "SubnetMin",
];

#[cfg(test)]
mod tests;
