use std::{fmt, net::IpAddr, str::FromStr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// An address block of IPv4, of IPv6, or one of each: what a pod network or the underlay is made of.
///
/// Never empty, and without host bits. Parsed from `10.244.1.0/24`, `fd00:1::/64` or `10.244.1.0/24,fd00:1::/64`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Blocks {
    ipv4: Option<Ipv4Network>,
    ipv6: Option<Ipv6Network>,
}

impl Blocks {
    /// The blocks given, host bits cleared; `None` if there is none.
    pub fn new(ipv4: Option<Ipv4Network>, ipv6: Option<Ipv6Network>) -> Option<Self> {
        match (ipv4, ipv6) {
            (Some(ipv4), Some(ipv6)) => Some((ipv4, ipv6).into()),
            (Some(ipv4), None) => Some(ipv4.into()),
            (None, Some(ipv6)) => Some(ipv6.into()),
            (None, None) => None,
        }
    }

    /// The IPv4 block.
    pub const fn ipv4(&self) -> Option<Ipv4Network> {
        self.ipv4
    }

    /// The IPv6 block.
    pub const fn ipv6(&self) -> Option<Ipv6Network> {
        self.ipv6
    }

    /// The blocks, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNetwork> + use<> {
        let ipv4 = self.ipv4.map(IpNetwork::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpNetwork::V6))
    }

    /// The address number `n` of each block, with the block's prefix length; `None` when a block is too small.
    ///
    /// The last address of an IPv4 block is its broadcast address and is not handed out.
    pub fn nth(&self, n: u32) -> Option<Vec<IpNetwork>> {
        self.iter().map(|block| nth_of(block, n)).collect()
    }

    /// How many addresses [`nth`](Self::nth) can hand out besides number 0.
    pub fn capacity(&self) -> u32 {
        let bits = self.iter().map(|block| match block {
            IpNetwork::V4(v4) => (32 - u32::from(v4.prefix()), 2),
            IpNetwork::V6(v6) => (128 - u32::from(v6.prefix()), 1),
        });
        bits.map(|(bits, reserved)| match 1_u64.checked_shl(bits) {
            Some(size) => u32::try_from(size.saturating_sub(reserved)).unwrap_or(u32::MAX),
            None => u32::MAX,
        })
        .min()
        .unwrap_or(0)
    }
}

fn nth_of(block: IpNetwork, n: u32) -> Option<IpNetwork> {
    let address: IpAddr = match block {
        IpNetwork::V4(v4) => {
            let address = v4.nth(n)?;
            if n > 0 && address == v4.broadcast() {
                return None;
            }
            address.into()
        }
        IpNetwork::V6(v6) => v6.nth(n.into())?.into(),
    };
    IpNetwork::new(address, block.prefix()).ok()
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, block) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{block}")?;
        }
        Ok(())
    }
}

impl From<IpNetwork> for Blocks {
    fn from(block: IpNetwork) -> Self {
        match block {
            IpNetwork::V4(v4) => v4.into(),
            IpNetwork::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Network> for Blocks {
    fn from(block: Ipv4Network) -> Self {
        Self { ipv4: Ipv4Network::new_checked(block.network(), block.prefix()), ipv6: None }
    }
}

impl From<Ipv6Network> for Blocks {
    fn from(block: Ipv6Network) -> Self {
        Self { ipv4: None, ipv6: Ipv6Network::new_checked(block.network(), block.prefix()) }
    }
}

impl From<(Ipv4Network, Ipv6Network)> for Blocks {
    fn from((ipv4, ipv6): (Ipv4Network, Ipv6Network)) -> Self {
        Self { ipv6: Self::from(ipv6).ipv6, ..Self::from(ipv4) }
    }
}

impl FromStr for Blocks {
    type Err = InvalidBlocks;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBlocks { text: text.to_owned() };
        let (mut ipv4, mut ipv6) = (None, None);
        for part in text.split(',') {
            let taken = match part.trim().parse().map_err(|_| invalid())? {
                IpNetwork::V4(v4) => ipv4.replace(v4).is_some(),
                IpNetwork::V6(v6) => ipv6.replace(v6).is_some(),
            };
            if taken {
                return Err(invalid());
            }
        }
        Self::new(ipv4, ipv6).ok_or_else(invalid)
    }
}

/// A text that does not name address blocks.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{text:?} is not an address block, expected 10.244.1.0/24, fd00:1::/64 or one of each with a comma"
)]
pub struct InvalidBlocks {
    text: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(text: &str) -> Blocks {
        text.parse().unwrap()
    }

    #[test]
    fn both_families_count_in_step() {
        let both = blocks("10.244.1.0/24,fd00:1::/64");
        let second = both.nth(2).unwrap();
        assert_eq!(
            second.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.244.1.2/24", "fd00:1::2/64"]
        );
        assert_eq!(both.capacity(), 254);
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(blocks("10.244.1.9/24").to_string(), "10.244.1.0/24");
        assert_eq!(
            Blocks::from("fd00::9/64".parse::<IpNetwork>().unwrap()).to_string(),
            "fd00::/64"
        );
    }

    #[test]
    fn the_broadcast_address_is_not_handed_out() {
        let small = blocks("10.0.0.0/30");
        assert_eq!(small.capacity(), 2);
        assert!(small.nth(2).is_some());
        assert_eq!(small.nth(3), None);
        assert_eq!(small.nth(4), None);
    }

    #[test]
    fn what_is_not_a_block_is_refused_by_name() {
        for text in ["", ",", "10.0.0.0/33", "10.0.0.0/8,10.1.0.0/16", "x"] {
            let error = text.parse::<Blocks>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text:?}")));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(text in ".*") {
            let _ = text.parse::<Blocks>();
        }

        #[test]
        fn parse_and_print_are_inverse(v4: Option<(u32, u8)>, v6: Option<(u128, u8)>) {
            let v4 = v4.and_then(|(bits, len)| Ipv4Network::new(bits.into(), len % 33).ok());
            let v6 = v6.and_then(|(bits, len)| Ipv6Network::new(bits.into(), len % 129).ok());
            if let Some(blocks) = Blocks::new(v4, v6) {
                prop_assert_eq!(blocks.to_string().parse(), Ok(blocks));
                prop_assert!(blocks.capacity() == 0 || blocks.nth(blocks.capacity()).is_some());
                if blocks.capacity() < u32::MAX {
                    prop_assert!(blocks.nth(blocks.capacity() + 1).is_none());
                }
            }
        }
    }
}
