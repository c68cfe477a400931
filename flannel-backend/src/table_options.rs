//! What backends make a table of routes from, and how they read options.

use flannel_core::{BackendError, FieldError, Fields, NetworkConfig, Place};
use flannel_netlink::{Namespace, state::Route, table::Mark};
use ipnetwork::IpNetwork;
use tracing::warn;

use crate::{PROTOCOL, PeerTable, SECOND_PROTOCOL, nexthop_ids, nexthop_ids_of, remove_leftovers};

/// Where a backend's routes are, and which are its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableOptions {
    /// The networks of the pods, one for each family.
    pub networks: Vec<IpNetwork>,
    /// The routing protocol number of its routes.
    pub protocol: u8,
    /// The routing table that they are in.
    pub table: u32,
    /// Whether packets to addresses of our own subnet that no pod has are dropped.
    pub blackholes: bool,
    /// Whether packets to the networks that no other route takes are refused.
    pub guards: bool,
    /// Whether another backend of this node has devices and filters of its own, which stay.
    pub beside_another: bool,
}

impl TableOptions {
    /// Routes with the usual mark in the main table, for the network in `config`.
    pub fn new(config: &NetworkConfig) -> Self {
        let ipv4 = config.ipv4().map(|range| IpNetwork::V4(range.network()));
        let ipv6 = config.ipv6().map(|range| IpNetwork::V6(range.network()));
        let networks = ipv4.into_iter().chain(ipv6).collect();
        Self {
            networks,
            protocol: PROTOCOL,
            table: Route::MAIN,
            blackholes: false,
            guards: false,
            beside_another: false,
        }
    }

    /// The same where [`Place`] says.
    pub fn at(&mut self, place: Place) {
        self.beside_another = place.beside;
        self.protocol = if place.alternate { SECOND_PROTOCOL } else { PROTOCOL };
    }

    /// Opens the table in `namespace` for a backend with these `devices`, after what other backends of the network have left was
    /// removed.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel cannot be asked or refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves some of the leftovers; another call removes the rest.
    pub async fn open(
        &self,
        namespace: &Namespace,
        devices: Vec<String>,
    ) -> Result<PeerTable, BackendError> {
        if !self.beside_another {
            remove_leftovers(namespace, &self.networks, &devices).await?;
        }
        let mut mark = Mark::new(self.protocol, self.networks.clone());
        mark.table = self.table;
        mark.sibling = match self.protocol {
            PROTOCOL => Some(SECOND_PROTOCOL),
            SECOND_PROTOCOL => Some(PROTOCOL),
            _ => None,
        };
        let ids = nexthop_ids(namespace, &self.networks, self.table).await?;
        mark.nexthops = nexthop_ids_of(self.protocol, ids);
        mark.devices = devices.into_iter().collect();
        let mut table = PeerTable::open(namespace, mark).await?;
        if self.blackholes {
            table = table.with_blackholes();
        }
        Ok(if self.guards { table.with_guards(self.networks.clone()) } else { table })
    }
}

/// Reads the option `MTU`, the largest packet between hosts in bytes, which is at least `smallest`.
///
/// # Errors
///
/// [`FieldError`] with what would be valid.
pub fn read_mtu(options: &Fields, smallest: u32) -> Result<Option<u32>, FieldError> {
    let mtu = options.integer("MTU", u64::from(smallest)..=u64::from(u16::MAX))?;
    // The range makes the conversion lossless.
    Ok(mtu.map(|mtu| mtu as u32))
}

/// Logs each member of `options` that is not `known` in any case: it may be misspelled.
pub fn warn_of_unknown_options(backend: &str, options: &Fields, known: &[&str]) {
    for key in unknown(options, known) {
        warn!(key, "the {backend} backend has no such option");
    }
}

fn unknown<'a>(options: &'a Fields, known: &[&str]) -> Vec<&'a str> {
    let is_known = |name: &str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
    options.names().filter(|name| !is_known(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_in_any_case_and_others_are_named() {
        let options =
            Fields::parse(r#"{"TYPE":"x","directRouting":true,"DirectRoute":1}"#).unwrap();
        assert_eq!(unknown(&options, &["Type", "DirectRouting"]), ["DirectRoute"]);
    }
}
