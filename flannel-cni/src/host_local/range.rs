use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// Addresses of one subnet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Range {
    /// The subnet, without host bits.
    pub subnet: IpNetwork,
    /// The first address of the range.
    pub start: IpAddr,
    /// The last address of the range.
    pub end: IpAddr,
    /// The subnet's gateway, which no container gets.
    pub gateway: IpAddr,
}

/// Ranges of one family of which a container gets one address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RangeSet(Vec<Range>);

impl Range {
    /// A range with what is not given filled in: all of the subnet, whose first address is the gateway.
    ///
    /// # Errors
    ///
    /// A sentence that says what cannot be.
    pub fn new(
        subnet: IpNetwork,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, String> {
        let bits = if subnet.is_ipv4() { 32 } else { 128 };
        if subnet.prefix() > bits - 2 {
            return Err(format!("Network {subnet} too small to allocate from"));
        }
        if subnet.ip() != subnet.network() {
            return Err(format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix(),
                subnet.network()
            ));
        }
        let inside = |what: &str, address: Option<IpAddr>, default: IpAddr| match address {
            None => Ok(default),
            Some(address) => {
                let address = address.to_canonical();
                if subnet.contains(address) {
                    return Ok(address);
                }
                Err(format!("{what} {address} not in network {subnet}"))
            }
        };
        let first = next(subnet.network()).unwrap_or_else(|| subnet.network());
        // The last of an IPv4 subnet is for broadcasts.
        let last = match subnet {
            IpNetwork::V4(v4) => Ipv4Addr::from(u32::from(v4.broadcast()) - 1).into(),
            IpNetwork::V6(v6) => v6.broadcast().into(),
        };
        let gateway = inside("gateway", gateway, first)?;
        let start = inside("RangeStart", start, first)?;
        let end = inside("RangeEnd", end, last)?;
        if start > end {
            return Err(format!("RangeStart {start} is after RangeEnd {end} in network {subnet}"));
        }
        Ok(Self { subnet, start, end, gateway })
    }

    /// Whether the address can be given out, the gateway aside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    /// The address as it is on an interface.
    pub fn with_prefix(&self, address: IpAddr) -> IpNetwork {
        IpNetwork::new(address, self.subnet.prefix()).expect("the prefix is that of this family")
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }
}

impl RangeSet {
    /// A set of these ranges.
    ///
    /// # Errors
    ///
    /// A sentence that says what cannot be: no range, two families, or ranges that overlap.
    pub fn new(ranges: Vec<Range>) -> Result<Self, String> {
        let Some(first) = ranges.first() else { return Err("empty range set".to_owned()) };
        if ranges.iter().any(|range| range.start.is_ipv4() != first.start.is_ipv4()) {
            return Err("mixed address families".to_owned());
        }
        for (index, one) in ranges.iter().enumerate() {
            if let Some(other) = ranges[index + 1..].iter().find(|other| one.overlaps(other)) {
                return Err(format!("subnets {one} and {other} overlap"));
            }
        }
        Ok(Self(ranges))
    }

    /// The range that has the address.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// Whether its ranges are of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.0[0].start.is_ipv4()
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|one| other.0.iter().any(|other| one.overlaps(other)))
    }

    /// The stretches of addresses to look for a free one in, in their order: from behind `last` to the end of its range, the
    /// ranges behind that one, those before it, and its own up to `last`. Without `last`, all ranges. No gateway is in them.
    pub(super) fn stretches(&self, last: Option<IpAddr>) -> Vec<(IpAddr, IpAddr)> {
        let at = last.and_then(|last| self.0.iter().position(|range| range.contains(last)));
        let (Some(at), Some(last)) = (at, last) else {
            return self
                .0
                .iter()
                .flat_map(|range| range.without_gateway(range.start, range.end))
                .collect();
        };
        let range = &self.0[at];
        let mut stretches = Vec::new();
        if let Some(after) = next(last).filter(|after| *after <= range.end) {
            stretches.extend(range.without_gateway(after, range.end));
        }
        for other in self.0[at + 1..].iter().chain(&self.0[..at]) {
            stretches.extend(other.without_gateway(other.start, other.end));
        }
        stretches.extend(range.without_gateway(range.start, last));
        stretches
    }
}

impl Range {
    fn without_gateway(&self, from: IpAddr, to: IpAddr) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let inside = (from..=to).contains(&self.gateway);
        let (before, after) = match inside {
            false => (Some((from, to)), None),
            true => (
                previous(self.gateway).filter(|it| *it >= from).map(|it| (from, it)),
                next(self.gateway).filter(|it| *it <= to).map(|it| (it, to)),
            ),
        };
        before.into_iter().chain(after)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(Ipv4Addr::from(u32::from(v4).checked_add(1)?).into()),
        IpAddr::V6(v6) => Some(Ipv6Addr::from(u128::from(v6).checked_add(1)?).into()),
    }
}

fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(Ipv4Addr::from(u32::from(v4).checked_sub(1)?).into()),
        IpAddr::V6(v6) => Some(Ipv6Addr::from(u128::from(v6).checked_sub(1)?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn range(subnet: &str) -> Range {
        Range::new(subnet.parse().unwrap(), None, None, None).unwrap()
    }

    #[test]
    fn what_is_not_given_is_filled_in_as_upstream_does() {
        let v4 = range("10.1.2.0/24");
        assert_eq!(
            (v4.start, v4.end, v4.gateway),
            (ip("10.1.2.1"), ip("10.1.2.254"), ip("10.1.2.1"))
        );
        let v6 = range("fd00::/120");
        assert_eq!((v6.start, v6.end, v6.gateway), (ip("fd00::1"), ip("fd00::ff"), ip("fd00::1")));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let new = |subnet: &str, start: Option<&str>, end: Option<&str>, gateway: Option<&str>| {
            Range::new(subnet.parse().unwrap(), start.map(ip), end.map(ip), gateway.map(ip))
        };
        for (result, expected) in [
            (new("10.1.2.0/31", None, None, None), "too small"),
            (new("fd00::/127", None, None, None), "too small"),
            (new("10.1.2.7/24", None, None, None), "host bits"),
            (new("10.1.2.0/24", None, None, Some("10.1.3.1")), "gateway 10.1.3.1 not in"),
            (new("10.1.2.0/24", Some("10.1.3.1"), None, None), "RangeStart 10.1.3.1 not in"),
            (new("10.1.2.0/24", None, Some("fd00::1"), None), "RangeEnd fd00::1 not in"),
            (new("10.1.2.0/24", Some("10.1.2.9"), Some("10.1.2.8"), None), "is after"),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(RangeSet::new(Vec::new()).is_err());
        assert!(RangeSet::new(vec![range("10.0.0.0/24"), range("fd00::/64")]).is_err());
        assert!(RangeSet::new(vec![range("10.0.0.0/16"), range("10.0.1.0/24")]).is_err());
    }

    #[test]
    fn the_search_goes_round_and_leaves_gateways_out() {
        let set = RangeSet::new(vec![range("10.0.0.0/29"), range("10.0.1.0/29")]).unwrap();
        let text = |last: Option<&str>| {
            let stretches = set.stretches(last.map(ip));
            let stretches = stretches.iter().map(|(from, to)| format!("{from}-{to}"));
            stretches.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(None), "10.0.0.2-10.0.0.6 10.0.1.2-10.0.1.6");
        assert_eq!(text(Some("10.0.0.4")), "10.0.0.5-10.0.0.6 10.0.1.2-10.0.1.6 10.0.0.2-10.0.0.4");
        assert_eq!(text(Some("10.0.1.6")), "10.0.0.2-10.0.0.6 10.0.1.2-10.0.1.6");
        assert_eq!(text(Some("10.9.9.9")), text(None), "the range of the last one is gone");
    }
}
