//! Arithmetic on address blocks of either family, and the range of subnets that a network is cut into.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{Ipv4Network, Ipv6Network};

/// An IPv4 or IPv6 address block without host bits, as numbers.
///
/// Sealed: the two families are all there is.
pub trait Cidr: Copy + Ord + fmt::Debug + fmt::Display + sealed::Sealed {
    /// The family's address type.
    type Address: Copy + Ord + fmt::Debug + fmt::Display;
    /// Bits in an address: 32 or 128.
    const BITS: u8;

    /// The block of `len` leading bits that holds the address with the number `bits`.
    ///
    /// # Panics
    ///
    /// If `len` is greater than [`Self::BITS`].
    fn from_bits(bits: u128, len: u8) -> Self;
    /// The first address as a number.
    fn bits(&self) -> u128;
    /// The number of leading bits that all addresses of the block share.
    fn prefix_len(&self) -> u8;
    /// The number behind an address.
    fn address_bits(address: Self::Address) -> u128;
    /// The address behind a number.
    fn address(bits: u128) -> Self::Address;

    /// The last address as a number.
    fn last_bits(&self) -> u128 {
        self.bits() | host_mask::<Self>(self.prefix_len())
    }

    /// Whether the two blocks share an address.
    fn overlaps_with(&self, other: &Self) -> bool {
        self.bits() <= other.last_bits() && other.bits() <= self.last_bits()
    }

    /// Whether all of `other` lies in this block.
    fn encloses(&self, other: &Self) -> bool {
        self.bits() <= other.bits() && other.last_bits() <= self.last_bits()
    }
}

mod sealed {
    #[expect(unnameable_types, reason = "a sealed trait cannot be implemented elsewhere")]
    pub trait Sealed {}
    impl Sealed for ipnetwork::Ipv4Network {}
    impl Sealed for ipnetwork::Ipv6Network {}
}

impl Cidr for Ipv4Network {
    type Address = Ipv4Addr;
    const BITS: u8 = 32;

    fn from_bits(bits: u128, len: u8) -> Self {
        let first = bits & !host_mask::<Self>(len);
        Self::new(Self::address(first), len).expect("len is at most 32")
    }

    fn bits(&self) -> u128 {
        Self::address_bits(self.network())
    }

    fn prefix_len(&self) -> u8 {
        self.prefix()
    }

    fn address_bits(address: Ipv4Addr) -> u128 {
        u32::from(address).into()
    }

    fn address(bits: u128) -> Ipv4Addr {
        // Only the low 32 bits can be set in the number of an IPv4 address.
        Ipv4Addr::from(bits as u32)
    }
}

impl Cidr for Ipv6Network {
    type Address = Ipv6Addr;
    const BITS: u8 = 128;

    fn from_bits(bits: u128, len: u8) -> Self {
        let first = bits & !host_mask::<Self>(len);
        Self::new(Self::address(first), len).expect("len is at most 128")
    }

    fn bits(&self) -> u128 {
        self.network().into()
    }

    fn prefix_len(&self) -> u8 {
        self.prefix()
    }

    fn address_bits(address: Ipv6Addr) -> u128 {
        address.into()
    }

    fn address(bits: u128) -> Ipv6Addr {
        bits.into()
    }
}

/// The subnets that nodes may get: all aligned blocks of one size from a first to a last one, inside a network.
///
/// Slots number the subnets from 0. A range is never empty and never leaves its network.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SubnetRange<C: Cidr> {
    network: C,
    subnet_len: u8,
    first: u128,
    last: u128,
}

impl<C: Cidr> SubnetRange<C> {
    /// The caller guarantees that both ends are aligned, ordered and inside `network`.
    pub(crate) fn new(network: C, subnet_len: u8, first: u128, last: u128) -> Self {
        debug_assert!(network.bits() <= first && first <= last && last <= network.last_bits());
        debug_assert_eq!((first | last) & host_mask::<C>(subnet_len), 0);
        Self { network, subnet_len, first, last }
    }

    /// The cluster's whole address block.
    pub fn network(&self) -> C {
        self.network
    }

    /// Leading bits of each subnet.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// First address of the first subnet that may be handed out.
    pub fn subnet_min(&self) -> C::Address {
        C::address(self.first)
    }

    /// First address of the last subnet that may be handed out.
    pub fn subnet_max(&self) -> C::Address {
        C::address(self.last)
    }

    /// Last address of the last subnet that may be handed out.
    pub fn last_address(&self) -> C::Address {
        C::address(self.end())
    }

    /// How many subnets there are, at least 1.
    pub fn count(&self) -> u128 {
        ((self.last - self.first) >> (C::BITS - self.subnet_len)) + 1
    }

    /// Whether `subnet` is one that may be handed out.
    pub fn contains(&self, subnet: C) -> bool {
        subnet.prefix_len() == self.subnet_len && (self.first..=self.last).contains(&subnet.bits())
    }

    fn end(&self) -> u128 {
        self.last | host_mask::<C>(self.subnet_len)
    }

    pub(crate) fn slot(&self, index: u128) -> C {
        C::from_bits(self.first + (index << (C::BITS - self.subnet_len)), self.subnet_len)
    }

    /// First and last slot that `block` touches, `None` if it touches none.
    pub(crate) fn slots_of(&self, block: &C) -> Option<(u128, u128)> {
        let (low, high) = (block.bits().max(self.first), block.last_bits().min(self.end()));
        let shift = C::BITS - self.subnet_len;
        (low <= high).then(|| ((low - self.first) >> shift, (high - self.first) >> shift))
    }
}

/// The bits of an address that a prefix of `len` leaves to the host.
pub(crate) fn host_mask<C: Cidr>(len: u8) -> u128 {
    let all = if C::BITS == 128 { u128::MAX } else { (1 << C::BITS) - 1 };
    all.checked_shr(len.into()).unwrap_or(0)
}

/// `text` as an address block in the form `ADDRESS/LEN`, host bits cleared.
///
/// Stricter than the parser of `ipnetwork`, which also takes an address alone and a netmask.
pub(crate) fn parse_cidr<C: Cidr>(
    text: &str,
    address: impl FnOnce(&str) -> Option<C::Address>,
) -> Option<C> {
    let (base, len) = text.split_once('/')?;
    let len = parse_len(len).filter(|len| *len <= C::BITS)?;
    Some(C::from_bits(C::address_bits(address(base)?), len))
}

/// A prefix length in plain decimal digits.
pub(crate) fn parse_len(text: &str) -> Option<u8> {
    let plain = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_both_families_convert_to_numbers_and_back() {
        let v4: Ipv4Network = "10.3.4.0/24".parse().unwrap();
        assert_eq!(Ipv4Network::from_bits(v4.bits() + 7, 24), v4);
        assert_eq!(v4.last_bits() - v4.bits(), 255);
        let all: Ipv6Network = "::/0".parse().unwrap();
        assert_eq!((all.bits(), all.last_bits()), (0, u128::MAX));
        let all: Ipv4Network = "0.0.0.0/0".parse().unwrap();
        assert_eq!((all.bits(), all.last_bits()), (0, u32::MAX.into()));
    }

    #[test]
    fn a_block_is_written_as_address_and_length_only() {
        let parse = |text| parse_cidr::<Ipv4Network>(text, |a| a.parse().ok());
        assert_eq!(parse("10.1.2.3/16"), Some("10.1.0.0/16".parse().unwrap()));
        for text in
            ["10.1.2.3", "10.0.0.0/255.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "/8"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn slots_cover_the_range_and_nothing_else() {
        let network: Ipv4Network = "10.3.0.0/16".parse().unwrap();
        let bits = |a: [u8; 4]| Ipv4Network::address_bits(a.into());
        let range = SubnetRange::new(network, 24, bits([10, 3, 1, 0]), bits([10, 3, 9, 0]));
        assert_eq!(range.count(), 9);
        assert_eq!(range.slot(8), "10.3.9.0/24".parse().unwrap());
        let slots = |text: &str| range.slots_of(&text.parse().unwrap());
        assert_eq!(slots("10.3.0.0/16"), Some((0, 8)));
        assert_eq!(slots("10.3.2.128/25"), Some((1, 1)));
        assert_eq!(slots("10.3.0.0/24"), None);
        assert_eq!(slots("10.3.10.0/24"), None);
    }
}
