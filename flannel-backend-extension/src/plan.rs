//! What commands are told about a peer, and which have to be run. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::{Family, Lease, PeerFault, Subnet};
use serde::{Deserialize, Serialize};

/// What commands are told about a peer.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Target {
    pub(crate) subnet: String,
    pub(crate) ipv6_subnet: String,
    pub(crate) public_ip: String,
    pub(crate) public_ipv6: String,
    /// For standard input.
    pub(crate) data: String,
}

impl Target {
    /// The variables of a lease.
    pub(crate) fn of(lease: &Lease) -> Self {
        fn text(value: Option<impl ToString>) -> String {
            value.map(|value| value.to_string()).unwrap_or_default()
        }
        Self {
            subnet: text(lease.subnet.ipv4()),
            ipv6_subnet: text(lease.subnet.ipv6()),
            public_ip: text(lease.attrs.public_ip),
            public_ipv6: text(lease.attrs.public_ipv6),
            data: String::new(),
        }
    }

    /// What serving `peer` needs, of the families that we have ourselves.
    pub(crate) fn peer(own: &Lease, peer: &Lease) -> Result<Self, PeerFault> {
        // Case matters, as it does to flannel.
        if peer.attrs.backend_type != crate::KIND {
            let theirs = peer.attrs.backend_type.to_string();
            return Err(PeerFault::OtherBackend { ours: crate::KIND.into(), theirs });
        }
        let mut target = Self::of(peer);
        if own.subnet.ipv4().is_none() {
            (target.subnet, target.public_ip) = Default::default();
        }
        if own.subnet.ipv6().is_none() {
            (target.ipv6_subnet, target.public_ipv6) = Default::default();
        }
        if !target.subnet.is_empty() && target.public_ip.is_empty() {
            return Err(PeerFault::NoAddress { family: Family::Ipv4 });
        }
        if !target.ipv6_subnet.is_empty() && target.public_ipv6.is_empty() {
            return Err(PeerFault::NoAddress { family: Family::Ipv6 });
        }
        if let Some(data) = &peer.attrs.backend_data {
            target.data = serde_json::from_str(data.as_str())
                .map_err(|_| PeerFault::BadData { detail: "BackendData is not a string".into() })?;
        }
        Ok(target)
    }

    pub(crate) fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("SUBNET", &self.subnet),
            ("IPV6SUBNET", &self.ipv6_subnet),
            ("PUBLIC_IP", &self.public_ip),
            ("PUBLIC_IPV6", &self.public_ipv6),
        ]
    }
}

/// A peer that commands have been run for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Served {
    pub(crate) target: Target,
    /// Whether the last command for it is known to have succeeded, and nothing has happened since.
    pub(crate) is_sure: bool,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Step {
    /// A peer that is not wanted any more.
    Remove(Subnet),
    /// A peer that is served otherwise than it should be, or perhaps not at all: remove what was, then add.
    Replace(Subnet),
    /// A peer that no command was run for.
    Add(Subnet),
}

impl Step {
    pub(crate) fn subnet(&self) -> Subnet {
        let (Self::Remove(subnet) | Self::Replace(subnet) | Self::Add(subnet)) = self;
        *subnet
    }
}

/// What leads from `served` to `wanted`: removals first.
pub(crate) fn steps(
    wanted: &BTreeMap<Subnet, Target>,
    served: &BTreeMap<Subnet, Served>,
) -> BTreeSet<Step> {
    let gone = served.keys().filter(|subnet| !wanted.contains_key(subnet));
    let kept = wanted.iter().filter_map(|(subnet, target)| match served.get(subnet) {
        None => Some(Step::Add(*subnet)),
        Some(served) if served.is_sure && served.target == *target => None,
        Some(_) => Some(Step::Replace(*subnet)),
    });
    gone.map(|subnet| Step::Remove(*subnet)).chain(kept).collect()
}

#[cfg(test)]
mod tests {
    use flannel_core::{LeaseAttrs, RawJson};
    use proptest::prelude::*;

    use super::*;

    fn lease(subnet: &str, attrs: LeaseAttrs) -> Lease {
        Lease::new(subnet.parse().unwrap(), attrs)
    }

    fn attrs(data: Option<&str>) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: Some([192, 0, 2, 7].into()),
            backend_type: crate::KIND.into(),
            backend_data: data.map(|data| RawJson::new(data).unwrap()),
            ..LeaseAttrs::default()
        }
    }

    #[test]
    fn a_peer_is_described_in_the_families_that_we_have() {
        let own = lease("10.1.1.0-24", attrs(None));
        let peer = lease("10.1.2.0-24&fd00:2::-64", attrs(Some(r#""a\nb""#)));
        let target = Target::peer(&own, &peer).unwrap();
        let expected = [
            ("SUBNET", "10.1.2.0/24"),
            ("IPV6SUBNET", ""),
            ("PUBLIC_IP", "192.0.2.7"),
            ("PUBLIC_IPV6", ""),
        ];
        assert_eq!((target.variables(), target.data.as_str()), (expected, "a\nb"));
        let dual = lease("10.1.1.0-24&fd00:1::-64", attrs(None));
        let fault = Target::peer(&dual, &peer).unwrap_err();
        assert_eq!(fault, PeerFault::NoAddress { family: Family::Ipv6 });
        let bad = lease("10.1.2.0-24", attrs(Some(r#"{"a":1}"#)));
        assert!(matches!(Target::peer(&own, &bad), Err(PeerFault::BadData { .. })));
        let other =
            lease("10.1.2.0-24", LeaseAttrs { backend_type: "vxlan".into(), ..attrs(None) });
        assert!(matches!(Target::peer(&own, &other), Err(PeerFault::OtherBackend { .. })));
    }

    fn peers<T: std::fmt::Debug>(
        value: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = BTreeMap<Subnet, T>> {
        let subnet = (0..8u8).prop_map(|n| format!("10.1.{n}.0-24").parse().unwrap());
        proptest::collection::btree_map(subnet, value, 0..8)
    }

    fn target() -> impl Strategy<Value = Target> {
        (0..3u8).prop_map(|n| Target { data: n.to_string(), ..Target::default() })
    }

    proptest! {
        #[test]
        fn steps_lead_to_what_is_wanted_and_then_there_are_none(
            wanted in peers(target()),
            served in peers((target(), any::<bool>())
                .prop_map(|(target, is_sure)| Served { target, is_sure })),
        ) {
            let mut after = served.clone();
            for step in steps(&wanted, &served) {
                match step {
                    Step::Remove(subnet) => prop_assert!(after.remove(&subnet).is_some()),
                    Step::Replace(subnet) | Step::Add(subnet) => {
                        prop_assert_eq!(matches!(step, Step::Add(_)), !after.contains_key(&subnet));
                        let target = wanted[&subnet].clone();
                        after.insert(subnet, Served { target, is_sure: true });
                    }
                }
            }
            prop_assert!(steps(&wanted, &after).is_empty());
            let targets: BTreeMap<_, _> =
                after.into_iter().map(|(subnet, served)| (subnet, served.target)).collect();
            prop_assert_eq!(targets, wanted);
        }
    }
}
