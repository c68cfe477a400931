//! What chains and tables are called, and whose they are.
//!
//! Flannel's names are the same for every network. So the first network of a namespace has them, and the rules of another one are
//! found under names with a hash of the network in them. Whose a chain is, the sources in its rules tell.

use std::{collections::BTreeSet, fmt, str::FromStr};

use ipnetwork::IpNetwork;

use crate::rules::{Family, Scope};

/// What chains and tables are called: `FLANNEL-POSTRTG` and `flannel-ipv4` unless set, as flannel's are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name(String);

impl Name {
    /// The chain of iptables for this purpose.
    pub(crate) fn chain(&self, purpose: &str) -> String {
        format!("{}-{purpose}", self.0.to_uppercase())
    }

    /// The table of nftables for this family.
    pub(crate) fn table(&self, family: Family) -> String {
        let family = match family {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        };
        format!("{}-{family}", self.0)
    }

    /// The name that only `network` has.
    pub(crate) fn of_network(&self, network: IpNetwork) -> Self {
        // FNV-1a: stable over releases, which the names have to be.
        let hash = network
            .to_string()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(format!("{}-{hash:08x}", self.0))
    }
}

impl Default for Name {
    fn default() -> Self {
        Self("flannel".into())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        if starts && text.len() <= LONGEST_NAME && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName { name: text.chars().take(40).collect() })
        }
    }
}

/// Why a text is no [`Name`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{name:?} cannot name chains and tables, expected 1 to 11 of a-z, 0-9 and -, a letter first"
)]
pub struct InvalidName {
    name: String,
}

/// iptables takes chains of up to 28 bytes; a network's hash and the longest purpose have 17 with their dashes.
const LONGEST_NAME: usize = 11;

/// The names of one node's rules, and what tells them from those of other networks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    standard: Name,
    /// This node's networks: the present one, and those that it had.
    networks: BTreeSet<IpNetwork>,
    /// The present networks.
    present: Vec<IpNetwork>,
    /// The families whose standard names another network had when we looked. That stays, so that two nodes do not change places.
    taken: BTreeSet<Family>,
}

/// Where the rules of one family belong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Placement {
    /// Where they are wanted; `None` if the node has no network of this family.
    pub(crate) wanted: Option<Name>,
    /// Where none are wanted.
    pub(crate) unwanted: Vec<Name>,
}

impl Names {
    /// `previous` are networks that this node had before.
    pub(crate) fn new(standard: Name, previous: &[IpNetwork]) -> Self {
        let networks = previous.iter().copied().collect();
        Self { standard, networks, ..Self::default() }
    }

    /// The network that the node is in from now on.
    pub(crate) fn enter(&mut self, scope: &Scope) {
        let blocks = Family::ALL.into_iter().filter_map(|family| Some(scope.blocks(family)?.0));
        self.present = blocks.collect();
        self.networks.extend(&self.present);
    }

    /// The name that the first network of a namespace has.
    pub(crate) const fn standard(&self) -> &Name {
        &self.standard
    }

    /// Whether another network has the standard names, in any family.
    pub(crate) fn are_taken(&self) -> bool {
        !self.taken.is_empty()
    }

    /// The names that rules of ours may have in this family.
    pub(crate) fn all(&self, family: Family) -> Vec<Name> {
        let own = self.of_family(family).map(|network| self.standard.of_network(*network));
        [self.standard.clone()].into_iter().chain(own).collect()
    }

    /// Whether rules with these sources are those of another network.
    pub(crate) fn is_foreign(
        &self,
        family: Family,
        sources: impl IntoIterator<Item = IpNetwork>,
    ) -> bool {
        // Who knows of no network at all is asked to remove whatever has the name.
        let mut sources = sources.into_iter().peekable();
        if self.networks.is_empty() || sources.peek().is_none() {
            return false;
        }
        !sources.any(|source| self.of_family(family).any(|network| overlap(source, *network)))
    }

    /// Where the rules of `family` belong, if the standard names have rules with these sources.
    pub(crate) fn place(
        &mut self,
        family: Family,
        sources: impl IntoIterator<Item = IpNetwork>,
    ) -> Placement {
        let is_foreign = self.is_foreign(family, sources);
        let present = self.present.iter().find(|network| network.is_ipv4() == family.is_ipv4());
        if is_foreign && self.taken.insert(family) && present.is_some() {
            tracing::info!(
                %family,
                "chains and tables named {} have rules of another network, ours get a name of their own",
                self.standard
            );
        }
        let mut unwanted = self.all(family);
        let wanted = present.map(|network| match self.taken.contains(&family) {
            true => self.standard.of_network(*network),
            false => self.standard.clone(),
        });
        unwanted.retain(|name| {
            Some(name) != wanted.as_ref() && !(is_foreign && *name == self.standard)
        });
        Placement { wanted, unwanted }
    }

    fn of_family(&self, family: Family) -> impl Iterator<Item = &IpNetwork> {
        self.networks.iter().filter(move |network| network.is_ipv4() == family.is_ipv4())
    }
}

/// Whether the blocks have addresses in common.
pub(crate) fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn names(previous: &[IpNetwork]) -> Names {
        let mut names = Names::new(Name::default(), previous);
        names.enter(&crate::rules::testing::scope());
        names
    }

    #[test]
    fn a_name_is_what_both_can_have() {
        assert_eq!(Name::default(), "flannel".parse().unwrap());
        let name: Name = "blue-2".parse().unwrap();
        let both = (name.chain("FWD"), name.table(Family::Ipv6));
        assert_eq!(both, ("BLUE-2-FWD".into(), "blue-2-ipv6".into()));
        for bad in ["", "2x", "-x", "Flannel", "a b", "a\n", "ä", "abcdefghijkl"] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("1 to 11 of a-z"), "{error}");
        }
        let longest: Name = "abcdefghijk".parse().unwrap();
        let chain = longest.of_network(block("10.0.0.0/8")).chain("POSTRTG");
        assert_eq!(chain.len(), 28, "{chain}");
    }

    #[test]
    fn another_networks_rules_keep_their_names() {
        let mut names = names(&[]);
        let own = Name::default().of_network(block("10.244.0.0/16"));
        let empty = names.place(Family::Ipv4, []);
        assert_eq!(
            (&empty.wanted, &empty.unwanted[..]),
            (&Some(Name::default()), &[own.clone()][..])
        );
        let ours = names.place(Family::Ipv4, [block("10.244.7.0/24")]);
        assert_eq!(ours, empty);
        let taken = names.place(Family::Ipv4, [block("10.99.0.0/16")]);
        assert_eq!((taken.wanted.as_ref(), taken.unwanted.len()), (Some(&own), 0));
        let flushed = names.place(Family::Ipv4, []);
        assert_eq!(
            (flushed.wanted, flushed.unwanted),
            (Some(own), vec![Name::default()]),
            "it stays"
        );
        assert_eq!(names.place(Family::Ipv6, []).wanted, Some(Name::default()));
    }

    #[test]
    fn rules_of_the_network_before_are_ours() {
        let before = block("10.99.0.0/16");
        let mut names = names(&[before]);
        let placement = names.place(Family::Ipv4, [before]);
        assert_eq!(placement.wanted, Some(Name::default()));
        assert!(placement.unwanted.contains(&Name::default().of_network(before)));
        let unknown = Names::new(Name::default(), &[]);
        assert!(!unknown.is_foreign(Family::Ipv4, [before]), "who knows nothing removes all");
        let mut ipv4_only = Names::new(Name::default(), &[before]);
        assert!(ipv4_only.is_foreign(Family::Ipv6, [block("fd00::/48")]));
        let theirs = ipv4_only.place(Family::Ipv6, [block("fd00::/48")]);
        assert_eq!((theirs.wanted, theirs.unwanted), (None, vec![]), "it is left alone");
    }
}
