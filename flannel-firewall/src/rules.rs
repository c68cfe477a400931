//! The rules that a node wants, as values.

use std::{collections::BTreeSet, fmt};

use flannel_core::{NetworkConfig, Subnet};
use ipnetwork::IpNetwork;

use crate::options::{FirewallOptions, Masquerade};

/// An address family. Each has its own rules.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Whether it is IPv4.
    pub const fn is_ipv4(self) -> bool {
        matches!(self, Self::Ipv4)
    }

    /// All groups: traffic to them is never masqueraded.
    fn multicast(self) -> IpNetwork {
        let block = match self {
            Self::Ipv4 => "224.0.0.0/4",
            Self::Ipv6 => "ff00::/8",
        };
        block.parse().expect("a block")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// What the rules are about: the network and the part of it that this node holds, for each family that both have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Scope {
    ipv4: Option<(IpNetwork, IpNetwork)>,
    ipv6: Option<(IpNetwork, IpNetwork)>,
    /// Whether packets between nodes go by no other way than [`FirewallOptions::tunnels`], if there are any.
    pub tunnels_only: bool,
}

impl Scope {
    /// The scope of the node that holds `subnet` of the network, whose packets take the tunnels that there are.
    pub fn new(config: &NetworkConfig, subnet: &Subnet) -> Self {
        let ipv4 = config.ipv4().zip(subnet.ipv4());
        let ipv6 = config.ipv6().zip(subnet.ipv6());
        Self {
            ipv4: ipv4.map(|(range, own)| (range.network().into(), own.into())),
            ipv6: ipv6.map(|(range, own)| (range.network().into(), own.into())),
            tunnels_only: true,
        }
    }

    /// The network's block and this node's, if they have that family.
    pub fn blocks(&self, family: Family) -> Option<(IpNetwork, IpNetwork)> {
        match family {
            Family::Ipv4 => self.ipv4,
            Family::Ipv6 => self.ipv6,
        }
    }
}

/// The rules of one family, in their order. Empty where there is nothing to keep.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Rules {
    /// For packets that leave this node; the first that fits decides.
    pub masquerade: Vec<Rule>,
    /// For packets that pass through this node.
    pub forward: Vec<Rule>,
}

impl Rules {
    /// What a node in `scope` wants.
    pub fn new(scope: &Scope, family: Family, options: &FirewallOptions) -> Self {
        let Some((network, own)) = scope.blocks(family) else { return Self::default() };
        let is = |block| Some(Match { block, negated: false });
        let is_not = |block| Some(Match { block, negated: true });
        let rule = |source, destination, action| Rule {
            marked: false,
            source,
            destination,
            device: None,
            action,
        };
        let mut rules = Self::default();
        if options.masquerade != Masquerade::Off {
            let random_ports = options.masquerade == Masquerade::RandomPorts;
            let masquerade = Action::Masquerade { random_ports };
            // Mirrors the order of masqRules in pkg/trafficmngr/iptables/iptables.go at cdf76059.
            rules.masquerade = vec![
                Rule { marked: true, ..rule(None, None, Action::Return) },
                rule(is(own), is(network), Action::Return),
                rule(is(network), is(own), Action::Return),
                rule(is_not(network), is(own), Action::Return),
            ];
            let kept = kept(&options.keep_source, family);
            rules.masquerade.extend(kept.map(|to| rule(is(network), to, Action::Return)));
            rules.masquerade.extend([
                rule(is(network), is_not(family.multicast()), masquerade),
                rule(is_not(network), is(network), masquerade),
            ]);
        }
        if let Some(tunnel) = options.tunnels.get(&family).filter(|_| scope.tunnels_only) {
            let not_by = |side| Some(NotBy { side, device: tunnel.clone() });
            let passes = if options.forward { Action::Accept } else { Action::Return };
            rules.forward.extend([
                rule(is(own), is(own), passes),
                Rule { device: not_by(Side::Enters), ..rule(is(network), is(own), Action::Drop) },
                rule(None, is(own), passes),
                Rule { device: not_by(Side::Leaves), ..rule(None, is(network), Action::Drop) },
            ]);
        }
        if options.forward {
            rules.forward.extend([
                rule(is(network), None, Action::Accept),
                rule(None, is(network), Action::Accept),
            ]);
        }
        rules
    }

    /// The same as flannel has it in nftables, where traffic from outside to pods of peers keeps its source.
    pub(crate) fn in_flannels_words(mut self, scope: &Scope, family: Family) -> Self {
        let Some((network, own)) = scope.blocks(family) else { return self };
        for rule in &mut self.masquerade {
            let arrives = rule.source == Some(Match { block: network, negated: true })
                && rule.destination == Some(Match { block: own, negated: false });
            if arrives {
                rule.source = Some(Match { block: own, negated: true });
                rule.destination = Some(Match { block: network, negated: false });
            }
        }
        self
    }

    /// The same for who cannot choose ports at random.
    pub(crate) fn without_random_ports(mut self) -> Self {
        for rule in &mut self.masquerade {
            if let Action::Masquerade { random_ports } = &mut rule.action {
                *random_ports = false;
            }
        }
        self
    }
}

/// The blocks of one family, each once and without host bits. Everything needs no condition, and tools print none.
fn kept(blocks: &[IpNetwork], family: Family) -> impl Iterator<Item = Option<Match>> {
    let of_family = blocks.iter().filter(|block| block.is_ipv4() == (family == Family::Ipv4));
    let whole = of_family.filter_map(|block| IpNetwork::new(block.network(), block.prefix()).ok());
    let blocks = whole.collect::<BTreeSet<_>>().into_iter();
    blocks.map(|block| (block.prefix() > 0).then_some(Match { block, negated: false }))
}

/// One rule: what happens to which packets.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Rule {
    /// Only packets that kube-proxy has marked, to be masqueraded by itself.
    pub marked: bool,
    /// Only packets from there.
    pub source: Option<Match>,
    /// Only packets to there.
    pub destination: Option<Match>,
    /// Only packets that do not go by there.
    pub device: Option<NotBy>,
    /// What happens to them.
    pub action: Action,
}

/// Addresses inside of a block, or outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Match {
    /// The block.
    pub block: IpNetwork,
    /// Whether the addresses outside of it are meant.
    pub negated: bool,
}

/// Packets that enter or leave by any other device than one.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NotBy {
    /// Which of their two devices is meant.
    pub side: Side,
    /// Its name, or with `+` at the end how it begins.
    pub device: String,
}

/// One of the two devices of a packet that passes through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Where it came from.
    Enters,
    /// Where it goes.
    Leaves,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// The packet passes.
    Accept,
    /// The packet is gone.
    Drop,
    /// The packet gets this node's address.
    Masquerade {
        /// And a random port.
        random_ports: bool,
    },
    /// Our rules have nothing to do with the packet.
    Return,
}

/// The bit that kube-proxy sets in the mark of packets that it masquerades by itself.
pub(crate) const KUBE_PROXY_MARK: u32 = 0x4000;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The dual stack node that the golden texts are about.
    pub(crate) fn rules(family: Family) -> Rules {
        let options =
            FirewallOptions { masquerade: Masquerade::RandomPorts, ..FirewallOptions::default() };
        Rules::new(&scope(), family, &options)
    }

    pub(crate) fn scope() -> Scope {
        let config: NetworkConfig =
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#
                .parse()
                .unwrap();
        Scope::new(&config, &"10.244.7.0-24&fd00:10:244:7::-64".parse().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Eq, PartialEq)]
    enum Fate {
        Kept,
        Masqueraded,
    }

    /// What happens to a packet that leaves the node.
    fn fate(rules: &Rules, marked: bool, from: IpAddr, to: IpAddr) -> Fate {
        let fits = |wanted: Option<Match>, ip| {
            wanted.is_none_or(|wanted| wanted.block.contains(ip) != wanted.negated)
        };
        let first = rules.masquerade.iter().find(|rule| {
            (!rule.marked || marked) && fits(rule.source, from) && fits(rule.destination, to)
        });
        match first.map(|rule| rule.action) {
            Some(Action::Masquerade { .. }) => Fate::Masqueraded,
            _ => Fate::Kept,
        }
    }

    const OWN: &str = "10.244.7.9";
    const PEER: &str = "10.244.8.9";
    const OUTSIDE: &str = "192.0.2.9";
    const GROUP: &str = "224.0.0.251";

    #[test]
    fn each_kind_of_traffic_has_its_fate() {
        let rules = testing::rules(Family::Ipv4);
        for (from, to, expected) in [
            (OWN, PEER, Fate::Kept),
            (PEER, OWN, Fate::Kept),
            (OUTSIDE, OWN, Fate::Kept),
            (OWN, OUTSIDE, Fate::Masqueraded),
            (PEER, OUTSIDE, Fate::Masqueraded),
            (OWN, GROUP, Fate::Kept),
            (OUTSIDE, PEER, Fate::Masqueraded),
            (OUTSIDE, OUTSIDE, Fate::Kept),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(fate(&rules, false, from, to), expected, "{from} to {to}");
            assert_eq!(fate(&rules, true, from, to), Fate::Kept, "{from} to {to}, marked");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_wanted() {
        let scope = testing::scope();
        let off = FirewallOptions { forward: false, ..FirewallOptions::default() };
        assert_eq!(Rules::new(&scope, Family::Ipv4, &off), Rules::default());
        let usual = Rules::new(&scope, Family::Ipv6, &FirewallOptions::default());
        assert_eq!((usual.masquerade.len(), usual.forward.len()), (0, 2));
        let config: NetworkConfig = r#"{"Network":"10.244.0.0/16"}"#.parse().unwrap();
        let scope = Scope::new(&config, &"10.244.7.0-24&fd00::-64".parse().unwrap());
        assert_eq!(Rules::new(&scope, Family::Ipv6, &FirewallOptions::default()), Rules::default());
    }

    #[test]
    fn packets_to_some_keep_their_source() {
        let masquerade = Masquerade::RandomPorts;
        let keep_source = ["192.0.2.77/24", "192.0.2.0/24", "fd00:1::/64", "198.51.100.7/32"];
        let keep_source = keep_source.map(|block| block.parse().unwrap()).to_vec();
        let options = FirewallOptions { masquerade, keep_source, ..FirewallOptions::default() };
        let rules = Rules::new(&testing::scope(), Family::Ipv4, &options);
        assert_eq!(rules.masquerade.len(), 8, "{:?}", rules.masquerade);
        let fate =
            |from: &str, to: &str| fate(&rules, false, from.parse().unwrap(), to.parse().unwrap());
        for kept in ["192.0.2.1", "198.51.100.7"] {
            assert_eq!((fate(OWN, kept), fate(PEER, kept)), (Fate::Kept, Fate::Kept), "{kept}");
        }
        assert_eq!(fate(OWN, "198.51.100.8"), Fate::Masqueraded);
        assert_eq!(fate("192.0.2.1", PEER), Fate::Masqueraded, "that is about what comes in");
        let v6 = Rules::new(&testing::scope(), Family::Ipv6, &options);
        assert_eq!(v6.masquerade.len(), 7);
        let all = FirewallOptions { keep_source: vec!["0.0.0.0/0".parse().unwrap()], ..options };
        let rules = Rules::new(&testing::scope(), Family::Ipv4, &all);
        assert_eq!(rules.masquerade[4].destination, None);
    }

    proptest! {
        /// The sense of it all, in other words than the rules have.
        #[test]
        fn traffic_is_masqueraded_where_it_crosses_the_edge_of_the_network(
            from: u32, to: u32, inside in any::<(bool, bool)>(), own in any::<(bool, bool)>(),
        ) {
            let place = |bits: u32, inside: bool, own: bool| -> IpAddr {
                let bits = match (inside, own) {
                    (true, true) => 0x0af4_0700 | bits & 0xff,
                    (true, false) => 0x0af4_0000 | bits & 0xffff,
                    _ => bits,
                };
                IpAddr::V4(bits.into())
            };
            let (from, to) = (place(from, inside.0, own.0), place(to, inside.1, own.1));
            let network: IpNetwork = "10.244.0.0/16".parse().unwrap();
            let subnet: IpNetwork = "10.244.7.0/24".parse().unwrap();
            let both = network.contains(from) && network.contains(to);
            let touches = network.contains(from) || network.contains(to);
            // A peer that sends to another peer through this node is not ours to judge; flannel masquerades it.
            let transit = both && !subnet.contains(from) && !subnet.contains(to);
            let arrives = subnet.contains(to);
            let to_group = to.is_multicast();
            let expected = touches && !arrives && !to_group && (!both || transit);
            let rules = testing::rules(Family::Ipv4);
            prop_assert_eq!(fate(&rules, false, from, to) == Fate::Masqueraded, expected);
        }
    }
}
