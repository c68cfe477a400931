//! What operators do with a network's store: change leases and configuration.

use std::fmt;

use flannel_core::{LeaseAttrs, NetworkConfig, NodeId, StoreError, Subnet};
use flannel_store::{
    ConfigText, Lifetime, NewRecord, Record, Registry, RegistryError, Snapshot, network_config,
};

pub use crate::key_rotation::rotate_key;
use crate::{Backends, InvalidOptions};

/// Why something was not done in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The configuration cannot be used.
    #[error(transparent)]
    InvalidOptions(#[from] InvalidOptions),
    /// A node holds the lease.
    #[error("{subnet} is leased to {}: release it first", shown(holder.as_ref()))]
    Leased {
        /// The lease.
        subnet: Subnet,
        /// The node, if it is known by name.
        holder: Option<NodeId>,
    },
    /// Nodes have not finished the move to the backend that they are to leave.
    #[error(
        "{} nodes have not moved yet ({}): try again when flannel-node status shows no migration any more, or release the leases of nodes \
         that are gone",
        leases.len(),
        FirstFew(leases)
    )]
    Moving {
        /// Their leases.
        leases: Vec<Subnet>,
    },
    /// There is no such lease.
    #[error("there is no lease {subnet}")]
    NoLease {
        /// What was looked for.
        subnet: Subnet,
    },
    /// The network does not hand out that subnet.
    #[error("{subnet} is not a subnet that this network hands out: {config}")]
    NotHandedOut {
        /// The subnet.
        subnet: Subnet,
        /// The network's configuration, as JSON.
        config: String,
    },
    /// Leases would be outside of the network.
    #[error(
        "{} leases do not fit this configuration ({}): release them first, or use --force",
        leases.len(),
        FirstFew(leases)
    )]
    Orphans {
        /// These.
        leases: Vec<Subnet>,
    },
    /// The store does not do it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The lease is not deleted.
    #[error("cannot release {subnet}")]
    Release {
        /// The lease.
        subnet: Subnet,
        /// The store's reason.
        #[source]
        source: RegistryError,
    },
    /// The network's configuration cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Some leases, and that there are more.
struct FirstFew<'a>(&'a [Subnet]);

impl fmt::Display for FirstFew<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().take(5).map(ToString::to_string).collect();
        let more = if self.0.len() > named.len() { ", ..." } else { "" };
        write!(f, "{}{more}", named.join(", "))
    }
}

pub(crate) fn shown(holder: Option<&NodeId>) -> String {
    holder.map_or_else(|| "a node without a name".into(), ToString::to_string)
}

/// Keeps a subnet for the node with the public addresses in `attrs`.
///
/// # Errors
///
/// [`OperateError`] if the network does not hand out that subnet, or a node has it.
pub async fn reserve(
    registry: &dyn Registry,
    key: &Subnet,
    attrs: &LeaseAttrs,
) -> Result<(), OperateError> {
    let config = network_config(registry).await?;
    if !config.admits(key) {
        let config = serde_json::to_string(&config.without_secrets()).expect("it is valid JSON");
        return Err(OperateError::NotHandedOut { subnet: *key, config });
    }
    write_reservation(
        registry,
        key,
        &NewRecord { value: attrs.to_string(), owner: None, ttl: None },
    )
    .await
}

/// Gives a subnet back. [`consequence`] says what that does to who has it.
///
/// # Errors
///
/// [`OperateError`] if there is no such lease, or the store does not delete it.
pub async fn release(registry: &dyn Registry, subnet: &Subnet) -> Result<(), OperateError> {
    let record = find(registry, subnet).await?;
    delete(registry, subnet, &record).await
}

/// Deletes the lease that `record` is.
pub(crate) async fn delete(
    registry: &dyn Registry,
    subnet: &Subnet,
    record: &Record,
) -> Result<(), OperateError> {
    let deleted = registry.delete(record).await;
    deleted.map_err(|source| OperateError::Release { subnet: *subnet, source })
}

/// What releasing a lease does to another program that holds it, which an operator should agree to; `None` if it harms nobody.
pub fn consequence(record: &Record) -> Option<String> {
    if record.owner.is_some() || matches!(record.lifetime, Lifetime::Lapsed | Lifetime::Unbounded) {
        return None;
    }
    let address = record.lease().ok().and_then(|lease| lease.attrs.address());
    let host = address.map_or_else(String::new, |address| format!(" at {address}"));
    Some(format!(
        "{} is held by another program such as flanneld{host}, which ends when its lease is released; its pods lose their network",
        record.key
    ))
}

/// The record of a lease.
///
/// # Errors
///
/// [`OperateError::NoLease`] if there is none.
pub async fn find(registry: &dyn Registry, subnet: &Subnet) -> Result<Record, OperateError> {
    let key = subnet.to_string();
    let found = registry.list().await?.records.into_iter().find(|record| record.key == key);
    found.ok_or(OperateError::NoLease { subnet: *subnet })
}

/// Reads a configuration and says whether nodes with these backends can use it.
///
/// # Errors
///
/// [`InvalidOptions`] that names the key, the value and what would be valid.
pub fn check_config(json: &str, backends: &Backends) -> Result<NetworkConfig, InvalidOptions> {
    let config: NetworkConfig = json.parse().map_err(InvalidOptions::new)?;
    backends.check(&config)?;
    Ok(config)
}

/// Stores a configuration. Without `force`, only one that nodes with these backends can use and that all leases fit.
///
/// # Errors
///
/// [`OperateError`] if the configuration cannot be used. Nothing is written then.
pub async fn set_config(
    registry: &dyn Registry,
    json: &str,
    force: bool,
    backends: &Backends,
) -> Result<ConfigText, OperateError> {
    let config: NetworkConfig = json.parse().map_err(InvalidOptions::new)?;
    if let Err(error) = backends.check(&config)
        && !force
    {
        let reason = format!("{error}; use --force to store it for other programs");
        return Err(InvalidOptions::new(reason).into());
    }
    let was = registry.config().await?;
    let leases = orphans(&config, &registry.list().await?);
    if !leases.is_empty() && !force {
        return Err(OperateError::Orphans { leases });
    }
    registry.set_config(&was, json).await?;
    Ok(was)
}

/// The leases that count and that nobody could have got under `config`.
fn orphans(config: &NetworkConfig, snapshot: &Snapshot) -> Vec<Subnet> {
    let counting = snapshot.records.iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let subnets = counting.filter_map(|record| record.key.parse().ok());
    subnets.filter(|subnet| !config.admits(subnet)).collect()
}

/// Writes a reservation where there is nothing, or in the place of one.
async fn write_reservation(
    registry: &dyn Registry,
    key: &Subnet,
    write: &NewRecord,
) -> Result<(), OperateError> {
    match registry.create(&key.to_string(), write).await {
        Ok(_) => Ok(()),
        Err(RegistryError::Conflict { current: Some(record) })
            if record.lifetime == Lifetime::Unbounded && record.owner.is_none() =>
        {
            registry.update(&record, write).await?;
            Ok(())
        }
        Err(RegistryError::Conflict { current: Some(record) }) => {
            Err(OperateError::Leased { subnet: *key, holder: record.owner })
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_lease_of_another_program_has_a_consequence() {
        let record = |owner: Option<&str>, lifetime| Record {
            key: "10.3.2.0-24".into(),
            value: Ok(r#"{"PublicIP":"192.0.2.7"}"#.into()),
            owner: owner.map(|id| id.parse().unwrap()),
            revision: 1,
            created: 1,
            lifetime,
            token: 0,
        };
        let said = consequence(&record(None, Lifetime::Bounded)).expect("flanneld ends");
        assert!(said.contains("10.3.2.0-24") && said.contains("at 192.0.2.7"), "{said}");
        assert_eq!(
            consequence(&record(Some("node-1"), Lifetime::Bounded)),
            None,
            "it takes another"
        );
        assert_eq!(consequence(&record(None, Lifetime::Lapsed)), None);
        assert_eq!(consequence(&record(None, Lifetime::Unbounded)), None);
    }
}
