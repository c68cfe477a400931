//! VLANs of containers, on a bridge that keeps them apart. Mirrors plugins/main/bridge/bridge.go of containernetworking/plugins
//! 1.10.0.

use std::collections::BTreeSet;

use flannel_netlink::{
    Connection, KernelError, link_by_index, link_by_name,
    state::{Link, LinkKind},
};
use serde::Deserialize;

use super::{
    add::{existing, set_up, until_running},
    bridge_keys::Bridge,
    pair::{self, Pair},
};
use crate::{
    kernel::{self, Port, VlanRange, refused},
    plugin::Call,
    protocol::{Code, Error},
};

/// Which VLANs containers are in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Vlans {
    /// The one of packets without a tag; 0 is the bridge's choice.
    pub(super) id: u16,
    /// Those whose packets keep their tags.
    trunk: BTreeSet<u16>,
    /// Whether a bridge that is made keeps VLANs apart.
    pub(super) filtering: bool,
    /// Whether ports stay in the VLAN that the bridge gives them.
    keep_default: bool,
}

/// An element of `vlanTrunk`.
#[derive(Debug, Deserialize)]
pub(super) struct TrunkKeys {
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
    id: Option<i64>,
}

impl Vlans {
    /// # Errors
    ///
    /// A sentence that says what cannot be.
    pub(super) fn new(
        id: i64,
        trunk: Option<&[TrunkKeys]>,
        keep_default: bool,
    ) -> Result<Self, String> {
        let of_port = match id {
            0 => 0,
            _ => number(id)
                .ok_or_else(|| format!("invalid VLAN ID {id} (must be between 0 and 4094)"))?,
        };
        let mut vlans = Self {
            id: of_port,
            trunk: BTreeSet::new(),
            filtering: id != 0 || trunk.is_some(),
            keep_default,
        };
        for keys in trunk.unwrap_or_default() {
            let read = |given: i64, name: &str| {
                number(given).ok_or_else(|| format!("incorrect trunk {name} parameter"))
            };
            match (keys.min, keys.max) {
                (Some(min), Some(max)) => {
                    let (min, max) = (read(min, "minID")?, read(max, "maxID")?);
                    if max < min {
                        return Err("minID is greater than maxID in trunk parameter".to_owned());
                    }
                    vlans.trunk.extend(min..=max);
                }
                (None, None) => {}
                (min, _) => {
                    let missing = if min.is_none() { "minID" } else { "maxID" };
                    return Err(format!(
                        "minID and maxID should be configured simultaneously, {missing} is missing"
                    ));
                }
            }
            if let Some(id) = keys.id {
                vlans.trunk.insert(read(id, "id")?);
            }
        }
        Ok(vlans)
    }

    /// An error that says what the kernel did not do, and what it lacks if that is VLANs.
    pub(super) fn refused(&self, what: String, error: &KernelError) -> Error {
        let refused = refused(what, error);
        match self.filtering && error.unsupported() {
            true => refused.with_details("the kernel has no CONFIG_BRIDGE_VLAN_FILTERING"),
            false => refused,
        }
    }

    /// What the port of a container joins, in this order: the last word on a VLAN counts.
    fn of_port(&self) -> Vec<VlanRange> {
        let untagged = |id| VlanRange { first: id, last: id, untagged: true };
        let mut ranges = Vec::new();
        if self.id != 0 {
            ranges.push(untagged(self.id));
        }
        for id in &self.trunk {
            match ranges.last_mut() {
                Some(range) if !range.untagged && range.last + 1 == *id => range.last = *id,
                _ => ranges.push(VlanRange { first: *id, last: *id, untagged: false }),
            }
        }
        if self.id == 0 && !self.trunk.is_empty() {
            ranges.push(untagged(DEFAULT_ID));
        }
        ranges
    }
}

/// Puts a port into its VLANs, if it has any.
pub(super) async fn join(host: &mut Connection, port: &Link, vlans: &Vlans) -> Result<(), Error> {
    let ranges = vlans.of_port();
    if ranges.is_empty() {
        return Ok(());
    }
    let mut requests = Vec::new();
    if !vlans.keep_default {
        requests.push(kernel::leave_vlans(port.index));
    }
    requests.push(kernel::join_vlans(port.index, &ranges));
    let joined: Result<(), _> = host.apply(&requests).await.into_iter().collect();
    joined.map_err(|error| {
        vlans.refused(format!("failed to setup vlan tag on interface {:?}", port.name), &error)
    })
}

/// The interface of the node that has the gateways of a VLAN: one end of a pair, whose other end is a port of the bridge.
///
/// It carries packets when all else is right. One that does not is being made, or was left by a plugin that was killed.
pub(super) async fn gateway(
    host: &mut Connection,
    call: &Call,
    bridge: &Bridge,
    master: &Link,
) -> Result<Link, Error> {
    let name = bridge.gateway_name();
    let what = || format!("failed to find interface {name:?}");
    let found = link_by_name(host, &name).await.map_err(|error| refused(what(), &error))?;
    let link = match found {
        Some(link) => link,
        None => {
            let pair = Pair {
                peer: &name,
                peer_namespace: &call.host,
                peer_mac: None,
                mtu: master.mtu,
                port: Port::default(),
            };
            let made = pair::make(host, master, &pair).await;
            // If it was not made, another container may have come first.
            existing(host, &name).await.map_err(|missing| made.err().unwrap_or(missing))?
        }
    };
    if link.running {
        return Ok(link);
    }
    // Anything else than a pair is somebody else's.
    if link.kind == LinkKind::Veth {
        let port = other_end(host, &link, master).await?;
        let vlans = Vlans { trunk: BTreeSet::new(), ..bridge.vlans.clone() };
        join(host, &port, &vlans).await?;
        set_up(host, &port).await?;
    }
    set_up(host, &link).await?;
    until_running(host, &call.host, &name).await
}

/// The port of the bridge that leads to this interface.
async fn other_end(host: &mut Connection, link: &Link, master: &Link) -> Result<Link, Error> {
    let what = || format!("failed to find the other end of {:?}", link.name);
    let found = match link.parent {
        Some(port) => link_by_index(host, port).await.map_err(|error| refused(what(), &error))?,
        None => None,
    };
    let leads_here =
        |port: &Link| (port.parent, port.controller) == (Some(link.index), Some(master.index));
    found.filter(leads_here).ok_or_else(|| {
        Error::new(Code::Kernel, format!("{}: no port of {:?} leads there", what(), master.name))
            .with_details(format!("remove it, and it is made anew: ip link delete {}", link.name))
    })
}

fn number(given: i64) -> Option<u16> {
    u16::try_from(given).ok().filter(|id| (1..=MOST_ID).contains(id))
}

/// The VLAN of what has none, as with all bridges.
const DEFAULT_ID: u16 = 1;
const MOST_ID: u16 = 4094;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(id: i64, trunk: Value) -> Result<Vlans, String> {
        let trunk: Option<Vec<TrunkKeys>> = serde_json::from_value(trunk).unwrap();
        Vlans::new(id, trunk.as_deref(), false)
    }

    /// As `bridge vlan show` has them.
    fn joined(id: i64, trunk: Value) -> Vec<String> {
        let text = |range: &VlanRange| match range {
            VlanRange { untagged: true, first, .. } => format!("{first} PVID"),
            VlanRange { first, last, .. } => format!("{first}-{last}"),
        };
        read(id, trunk).unwrap().of_port().iter().map(text).collect()
    }

    #[test]
    fn ports_join_what_upstreams_would() {
        assert_eq!(joined(0, Value::Null), [""; 0]);
        assert_eq!(joined(0, json!([])), [""; 0]);
        assert_eq!(joined(100, Value::Null), ["100 PVID"]);
        let trunk =
            json!([{"minID": 10, "maxID": 12}, {"id": 13}, {"id": 20, "minID": 1, "maxID": 2}]);
        assert_eq!(joined(100, trunk.clone()), ["100 PVID", "1-2", "10-13", "20-20"]);
        assert_eq!(joined(9, trunk.clone()), ["9 PVID", "1-2", "10-13", "20-20"]);
        assert_eq!(joined(19, json!([{"id": 20}])), ["19 PVID", "20-20"]);
        // Without one of its own, a trunk has that of the bridge.
        assert_eq!(joined(0, trunk), ["1-2", "10-13", "20-20", "1 PVID"]);
    }

    #[test]
    fn a_bridge_keeps_vlans_apart_if_there_may_be_any() {
        let filtering = |id, trunk| read(id, trunk).unwrap().filtering;
        assert!(!filtering(0, Value::Null));
        assert!(filtering(7, Value::Null) && filtering(0, json!([])));
    }

    #[test]
    fn a_kernel_without_vlans_is_named() {
        // linux/errno.h
        let (unsupported, other) = (KernelError::new(95), KernelError::new(1));
        let details =
            |id, error| read(id, Value::Null).unwrap().refused("no".to_owned(), error).details;
        assert!(details(7, &unsupported).contains("CONFIG_BRIDGE_VLAN_FILTERING"));
        assert!(!details(7, &other).contains("CONFIG_") && details(0, &unsupported).is_empty());
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (id, trunk, expected) in [
            (-1, Value::Null, "invalid VLAN ID -1"),
            (4095, Value::Null, "invalid VLAN ID 4095"),
            (0, json!([{"id": 0}]), "incorrect trunk id parameter"),
            (0, json!([{"minID": 0, "maxID": 1}]), "incorrect trunk minID parameter"),
            (0, json!([{"minID": 1, "maxID": 4095}]), "incorrect trunk maxID parameter"),
            (0, json!([{"minID": 2, "maxID": 1}]), "minID is greater than maxID"),
            (0, json!([{"minID": 2}]), "maxID is missing"),
            (0, json!([{"maxID": 2}]), "minID is missing"),
        ] {
            let error = read(id, trunk).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
