//! What a running node makes of a changed configuration.

use std::fmt::Display;

use super::{BackendConfig, NetworkConfig};
use crate::{
    cidr::{Cidr, SubnetRange},
    fault::{Activity, Fault, FaultKind},
    peer_fault::Family,
};

/// A configuration that a running node goes on with, and what it cannot adopt.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Adopted {
    /// The configuration to go on with.
    pub config: NetworkConfig,
    /// What takes a restart, with the value of either configuration: faults of the kind [`FaultKind::ConfigChanged`].
    pub conflicts: Vec<Fault>,
}

impl NetworkConfig {
    /// What a node that runs with `self` makes of `wanted`, which is what the store has now.
    ///
    /// A network that was enlarged, other subnet lengths and other bounds are adopted. Another network, another family and another
    /// firewall are not. Another backend and other options of it are: the running network says what it makes of them.
    pub fn adopt(&self, wanted: &Self) -> Adopted {
        let mut conflicts = Vec::new();
        let ipv4 = adopt_range(self.ipv4, wanted.ipv4, Family::Ipv4, &mut conflicts);
        let ipv6 = adopt_range(self.ipv6, wanted.ipv6, Family::Ipv6, &mut conflicts);
        if self.enable_nftables != wanted.enable_nftables {
            let shown =
                |value: Option<bool>| value.map_or_else(|| "unset".into(), |on| on.to_string());
            conflicts.push(conflict(
                "EnableNFTables",
                shown(self.enable_nftables),
                shown(wanted.enable_nftables),
            ));
        }
        let backend = wanted.backend.clone();
        let config = Self { ipv4, ipv6, enable_nftables: self.enable_nftables, backend };
        Adopted { config, conflicts }
    }

    /// The same network with the backend of `other`.
    pub(crate) fn with_backend_of(&self, other: &Self) -> Self {
        self.with_backend(other.backend.clone())
    }

    /// The same network with this backend.
    pub(crate) fn with_backend(&self, backend: BackendConfig) -> Self {
        Self { backend, ..self.clone() }
    }
}

/// The fault of a node that runs with `running` where the store has `wanted`.
pub(crate) fn conflict(key: &str, running: impl Display, wanted: impl Display) -> Fault {
    let operation = format!("adopt {key} {wanted} from the network config");
    let reason =
        format!("this node runs with {running}, and goes on serving the peers that it has");
    Fault::new(FaultKind::ConfigChanged, "config", operation, reason)
        .during(Activity::Config)
        .with_remedy("restart the node, or correct the network config")
}

fn adopt_range<C: Cidr>(
    running: Option<SubnetRange<C>>,
    wanted: Option<SubnetRange<C>>,
    family: Family,
    conflicts: &mut Vec<Fault>,
) -> Option<SubnetRange<C>> {
    let key = match family {
        Family::Ipv4 => "Network",
        Family::Ipv6 => "IPv6Network",
    };
    match (running, wanted) {
        (Some(running), Some(wanted)) if wanted.network().encloses(&running.network()) => {
            Some(wanted)
        }
        (Some(running), Some(wanted)) => {
            conflicts.push(conflict(key, running.network(), wanted.network()));
            Some(running)
        }
        (None, None) => None,
        (running, _) => {
            conflicts.push(conflict(
                &format!("Enable{family}"),
                running.is_some(),
                running.is_none(),
            ));
            running
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> NetworkConfig {
        json.parse().unwrap()
    }

    #[test]
    fn what_can_change_under_a_running_node_does() {
        let running = config(r#"{"Network":"10.16.0.0/16","Backend":{"Type":"vxlan"}}"#);
        for wanted in [
            r#"{"Network":"10.16.0.0/12","Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.16.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.16.0.0/16","SubnetMin":"10.16.8.0","SubnetMax":"10.16.9.0","Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.16.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#,
        ] {
            let adopted = running.adopt(&config(wanted));
            assert_eq!(adopted, Adopted { config: config(wanted), conflicts: Vec::new() });
        }
    }

    #[test]
    fn what_cannot_is_named_with_both_values_and_the_rest_is_adopted() {
        let running = config(
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48","Backend":{"Type":"vxlan"}}"#,
        );
        let wanted = config(
            r#"{"Network":"10.4.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/16","EnableNFTables":true,
                "Backend":{"Type":"host-gw"}}"#,
        );
        let Adopted { config: adopted, conflicts } = running.adopt(&wanted);
        assert_eq!((adopted.ipv4(), adopted.ipv6()), (running.ipv4(), wanted.ipv6()));
        assert_eq!(adopted.backend().kind(), "host-gw");
        let texts: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
        for (text, values) in texts.iter().zip([
            ["Network 10.4.0.0/16", "runs with 10.3.0.0/16"],
            ["EnableNFTables true", "runs with unset"],
        ]) {
            assert!(values.iter().all(|value| text.contains(value)), "{text}");
        }
        assert_eq!(texts.len(), 2);
        assert!(conflicts.iter().all(|fault| fault.kind.is_partial()));

        let one = running.adopt(&config(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#));
        assert!(one.conflicts[0].to_string().contains("EnableIPv6 false"), "{:?}", one.conflicts);
        assert_eq!(one.config, running);
        let shrunk = config(r#"{"Network":"10.3.0.0/17"}"#);
        assert_eq!(config(r#"{"Network":"10.3.0.0/16"}"#).adopt(&shrunk).conflicts.len(), 1);
    }
}
