//! How far a node is on its way from one backend to another.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{identity::NodeId, lease::Lease, subnet::Subnet};

/// What a node that moves from one backend to another has done, and what it waits for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(default)]
pub struct MigrationReport {
    /// The backend that is left, as the network's configuration names it.
    pub from: String,
    /// The backend that is taken.
    pub to: String,
    /// How many peers are sent to by the backend that is taken.
    pub moved: usize,
    /// How many peers there are.
    pub peers: usize,
    /// How many peers are waited for: those that are still sent to by the backend that is left or, if there are none, those that are
    /// not done with it.
    pub waiting: usize,
    /// The first of them, at most [`NAMED`](Self::NAMED).
    pub named: Vec<WaitingPeer>,
    /// Whether only the end is waited for: nobody needs the backend that is left, and it goes when everybody knows that.
    pub leaving: bool,
    /// A backend that the configuration names by now, and that is moved to afterwards.
    pub then: Option<String>,
}

/// A peer that still needs the backend that is left.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WaitingPeer {
    /// Its subnet.
    pub subnet: Subnet,
    /// Its name, if the store knows it.
    pub node: Option<NodeId>,
    /// Its address.
    pub address: Option<IpAddr>,
}

impl MigrationReport {
    /// How many of the peers that are waited for are named.
    pub const NAMED: usize = 8;
}

impl WaitingPeer {
    /// The peer with this lease.
    pub fn new(lease: &Lease) -> Self {
        let (subnet, address) = (lease.subnet, lease.attrs.address());
        Self { subnet, node: lease.node.clone(), address }
    }
}

impl fmt::Display for WaitingPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, &self.address) {
            (Some(node), _) => write!(f, "{node} ({})", self.subnet),
            (None, Some(address)) => write!(f, "{address} ({})", self.subnet),
            (None, None) => write!(f, "{}", self.subnet),
        }
    }
}

impl fmt::Display for MigrationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, moved, peers, waiting, named, leaving, then } = self;
        write!(f, "from {from} to {to}: {moved} of {peers} peers are sent to by {to}")?;
        if *leaving {
            write!(f, ", nobody needs {from} any more")?;
        } else if *waiting > 0 {
            let named: Vec<_> = named.iter().map(ToString::to_string).collect();
            write!(f, ", {from} is still needed by {}", named.join(", "))?;
            if *waiting > named.len() {
                write!(f, " and {} more", waiting - named.len())?;
            }
        }
        match then {
            Some(then) => write!(f, "; afterwards to {then}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LeaseAttrs;

    #[test]
    fn who_is_waited_for_is_named_and_the_rest_is_counted() {
        let lease = |n: u8| {
            let public_ip = Some([192, 0, 2, n].into());
            let attrs = LeaseAttrs { public_ip, ..LeaseAttrs::default() };
            Lease::new(format!("10.3.{n}.0-24").parse().unwrap(), attrs)
        };
        let named = lease(2).held_by("node-2".parse().unwrap());
        let mut report = MigrationReport {
            from: "vxlan".into(),
            to: "host-gw".into(),
            moved: 1,
            peers: 4,
            waiting: 3,
            ..MigrationReport::default()
        };
        report.named = vec![WaitingPeer::new(&named), WaitingPeer::new(&lease(3))];
        assert_eq!(
            report.to_string(),
            "from vxlan to host-gw: 1 of 4 peers are sent to by host-gw, vxlan is still needed by node-2 (10.3.2.0-24), 192.0.2.3 \
             (10.3.3.0-24) and 1 more"
        );
        report.waiting = 2;
        assert!(report.to_string().ends_with(", 192.0.2.3 (10.3.3.0-24)"), "{report}");
        (report.moved, report.waiting, report.leaving) = (4, 0, true);
        report.then = Some("udp".into());
        assert_eq!(
            report.to_string(),
            "from vxlan to host-gw: 4 of 4 peers are sent to by host-gw, nobody needs vxlan any more; afterwards to udp"
        );
    }
}
