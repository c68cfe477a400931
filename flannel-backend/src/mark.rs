//! The marks by which our kernel objects are known.

use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

/// The routing protocol number of our routes and nexthop objects: 241, which `/etc/iproute2/rt_protos` gives to nobody.
pub const PROTOCOL: u8 = 241;

/// The numbers of nexthop objects for a network.
///
/// Numbers are shared by all programs of a machine. Each network has a block of 2^20 of its own, chosen by its address, in the
/// upper half of the number space where no routing daemon counts up to.
pub fn nexthop_numbers(networks: &[IpNetwork]) -> RangeInclusive<u32> {
    let hash = network_number(networks);
    let first = 1 << 31 | (hash ^ hash >> 16) << 20 & 0x7ff0_0000;
    first..=first | 0x000f_ffff
}

/// The number of a network, for what has no address of it.
pub fn network_number(networks: &[IpNetwork]) -> u32 {
    let bytes = networks.iter().flat_map(|network| network.to_string().into_bytes());
    // FNV-1a, 32 bits.
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_network_has_numbers_of_its_own() {
        let numbers = |text: &str| nexthop_numbers(&[text.parse().unwrap()]);
        let (a, b) = (numbers("10.3.0.0/16"), numbers("10.4.0.0/16"));
        assert_eq!(a.end() - a.start(), (1 << 20) - 1);
        assert_eq!(*a.start() % (1 << 20), 0);
        assert!(*a.start() >= 1 << 31 && a.end() < b.start() || b.end() < a.start());
        assert_eq!(a, numbers("10.3.0.0/16"));
    }
}
