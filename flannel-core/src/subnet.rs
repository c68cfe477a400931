//! A node's subnet, and the key under which stores keep its lease.

use std::{fmt, str::FromStr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::{
    cidr::{Cidr, parse_len},
    fields::shorten,
};

/// The address block of one node: IPv4, IPv6, or one of each.
///
/// Never empty, and without host bits. [`fmt::Display`] and [`str::parse`] use flannel's key form, such as `10.5.1.0-24` or
/// `10.5.1.0-24&fd00:5:1::-64`. An IPv6-only subnet is `fd00:5:1::-64`, which flannel does not read.
#[derive(Clone, Copy, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    ipv4: Option<Ipv4Network>,
    ipv6: Option<Ipv6Network>,
}

/// A text that is not the key of a subnet.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{key:?} is not a subnet key, expected a form such as 10.5.1.0-24 or 10.5.1.0-24&fd00:5:1::-64"
)]
pub struct InvalidSubnetKey {
    key: String,
}

impl Subnet {
    /// A subnet of the families given, host bits cleared; `None` if there is none.
    pub fn new(ipv4: Option<Ipv4Network>, ipv6: Option<Ipv6Network>) -> Option<Self> {
        let ipv4 = ipv4.map(|block| Ipv4Network::from_bits(block.bits(), block.prefix_len()));
        let ipv6 = ipv6.map(|block| Ipv6Network::from_bits(block.bits(), block.prefix_len()));
        (ipv4.is_some() || ipv6.is_some()).then_some(Self { ipv4, ipv6 })
    }

    /// The IPv4 block.
    pub fn ipv4(&self) -> Option<Ipv4Network> {
        self.ipv4
    }

    /// The IPv6 block.
    pub fn ipv6(&self) -> Option<Ipv6Network> {
        self.ipv6
    }

    /// The one or two blocks, IPv4 first.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let ipv4 = self.ipv4.map(IpNetwork::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpNetwork::V6))
    }

    /// Whether the two share an address in either family.
    pub fn overlaps(&self, other: &Self) -> bool {
        let ipv4 = self.ipv4.zip(other.ipv4).is_some_and(|(a, b)| a.overlaps_with(&b));
        let ipv6 = self.ipv6.zip(other.ipv6).is_some_and(|(a, b)| a.overlaps_with(&b));
        ipv4 || ipv6
    }
}

impl Subnet {
    /// The subnet that a key is about which somebody wrote by hand: with host bits, which are cleared, or in another spelling.
    ///
    /// Flannel follows such keys. A [parsed](str::parse) subnet never comes from one.
    pub fn of_any_spelling(key: &str) -> Option<Self> {
        Self::read(key).map(|(subnet, _)| subnet)
    }

    /// The same, and whether the key has no host bits and no zeros in front of a length.
    fn read(key: &str) -> Option<(Self, bool)> {
        let (v4, v6) = match key.split_once('&') {
            Some((v4, v6)) => (Some(v4), Some(v6)),
            None if key.contains(':') => (None, Some(key)),
            None => (Some(key), None),
        };
        // The longest lengths are those of flannel's ParseSubnetKey, which reads 5 and 7 bits.
        let v4 = v4.map(|v4| block::<Ipv4Network>(v4, 31, |a| a.parse().ok()).ok_or(()));
        let v6 = v6.map(|v6| block::<Ipv6Network>(v6, 127, |a| a.parse().ok()).ok_or(()));
        let (v4, v6) = (v4.transpose().ok()?, v6.transpose().ok()?);
        let is_exact = v4.is_none_or(|(_, exact)| exact) && v6.is_none_or(|(_, exact)| exact);
        let subnet = Self::new(v4.map(|(block, _)| block), v6.map(|(block, _)| block))?;
        Some((subnet, is_exact))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Mirrors MakeSubnetKey in pkg/subnet/subnet.go at cdf76059.
        match (self.ipv4, self.ipv6) {
            (Some(v4), Some(v6)) => {
                write!(f, "{}-{}&{}-{}", v4.network(), v4.prefix(), v6.network(), v6.prefix())
            }
            (Some(v4), None) => write!(f, "{}-{}", v4.network(), v4.prefix()),
            (None, Some(v6)) => write!(f, "{}-{}", v6.network(), v6.prefix()),
            (None, None) => unreachable!("a subnet is never empty"),
        }
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnetKey;

    fn from_str(key: &str) -> Result<Self, InvalidSubnetKey> {
        // One subnet has one key: other spellings, and host bits, would let two keys stand for the same subnet. An IPv4 address is
        // read in one spelling only.
        let is_its_key = |subnet: &Self| subnet.ipv6.is_none() || subnet.to_string() == key;
        Self::read(key)
            .and_then(|(subnet, is_exact)| is_exact.then_some(subnet))
            .filter(is_its_key)
            .ok_or_else(|| InvalidSubnetKey { key: shorten(key) })
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnetKey;

    fn try_from(key: String) -> Result<Self, InvalidSubnetKey> {
        key.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// A block, and whether it was written without host bits and without zeros in front of the length.
fn block<C: Cidr>(
    text: &str,
    longest: u8,
    address: impl FnOnce(&str) -> Option<C::Address>,
) -> Option<(C, bool)> {
    let (base, len) = text.rsplit_once('-')?;
    let is_plain = len.len() == 1 || !len.starts_with('0');
    let len = parse_len(len).filter(|len| *len <= longest)?;
    let bits = C::address_bits(address(base)?);
    let block = C::from_bits(bits, len);
    Some((block, is_plain && block.bits() == bits))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_read_and_print_as_flannels() {
        // TestSubnetNodev4 and TestSubnetNodev6 in pkg/subnet/subnet_test.go at cdf76059.
        for key in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "fd00:12:13::-56"] {
            assert_eq!(key.parse::<Subnet>().unwrap().to_string(), key);
        }
        // What net.IP.String of Go prints: lower case, and the first of the longest runs of zeros left out.
        for key in [
            "10.0.0.0-30&2001:0:0:1::-64",
            "10.0.0.0-30&2001:db8:0:1::-64",
            "10.0.0.0-30&2001::1:0:1:0:0-96",
            "10.0.0.0-30&2001::1:0:0:100-127",
            "10.0.0.0-30&::-64",
        ] {
            assert_eq!(key.parse::<Subnet>().unwrap().to_string(), key);
        }
        let dual: Subnet = "10.12.13.0-24&fd00:12:13::-56".parse().unwrap();
        assert_eq!(dual.ipv4(), Some("10.12.13.0/24".parse().unwrap()));
        let blocks: Vec<_> = dual.blocks().map(|block| block.to_string()).collect();
        assert_eq!(blocks, ["10.12.13.0/24", "fd00:12:13::/56"]);
        assert_eq!(dual.ipv6(), Some("fd00:12:13::/56".parse().unwrap()));
        assert_eq!(format!("{dual:?}"), dual.to_string());
    }

    #[test]
    fn a_key_with_host_bits_is_no_subnet_and_is_about_one() {
        for (key, about) in [
            ("10.12.13.7-24", "10.12.13.0-24"),
            ("10.12.13.7-24&FD00:12:13::1-56", "10.12.13.0-24&fd00:12:13::-56"),
            ("10.12.13.0-24", "10.12.13.0-24"),
        ] {
            assert_eq!(Subnet::of_any_spelling(key), Some(about.parse().unwrap()));
            assert_eq!(key.parse::<Subnet>().is_ok(), key == about);
        }
        assert_eq!(Subnet::of_any_spelling("10.12.13-24"), None);
    }

    #[test]
    fn malformed_keys_are_refused() {
        // The first eleven are TestSubnetNodeInvalid at cdf76059.
        for key in [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "",
            "10.12.13.7-24",
            "10.12.13.0-32",
            "010.12.13.0-24",
            "10.12.13.0-+24",
            "10.12.13.0-024",
            "x10.12.13.0-24",
            "FD00::-56",
            "fd00:0::-56",
            "10.12.13.0-24&",
        ] {
            assert!(key.parse::<Subnet>().is_err(), "{key}");
        }
    }

    #[test]
    fn subnets_overlap_if_either_family_does() {
        let subnet = |key: &str| key.parse::<Subnet>().unwrap();
        let dual = subnet("10.1.2.0-24&fd00:2::-64");
        assert!(dual.overlaps(&subnet("10.1.0.0-16")));
        assert!(dual.overlaps(&subnet("10.1.2.128-25")));
        assert!(dual.overlaps(&subnet("10.9.9.0-24&fd00:2::-64")));
        assert!(!dual.overlaps(&subnet("10.1.3.0-24&fd00:3::-64")));
        assert!(!subnet("10.1.2.0-24").overlaps(&subnet("fd00:2::-64")));
    }

    proptest! {
        #[test]
        fn every_subnet_survives_its_key(
            v4 in proptest::option::of((any::<u32>(), 0u8..=31)),
            v6 in proptest::option::of((any::<u128>(), 0u8..=127)),
        ) {
            let v4 = v4.map(|(bits, len)| Ipv4Network::from_bits(bits.into(), len));
            let v6 = v6.map(|(bits, len)| Ipv6Network::from_bits(bits, len));
            if let Some(subnet) = Subnet::new(v4, v6) {
                prop_assert_eq!(subnet.to_string().parse::<Subnet>(), Ok(subnet));
            }
        }

        #[test]
        fn no_key_panics(key in "\\PC{0,60}", close in "[0-9a-f.:&-]{0,40}") {
            for key in [key, close] {
                if let Ok(subnet) = key.parse::<Subnet>() {
                    prop_assert_eq!(subnet.to_string(), key);
                }
            }
        }
    }
}
