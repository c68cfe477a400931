//! What operators do with a network's store: change leases and configuration.

use anyhow::{Context, Result, anyhow, bail, ensure};
use flannel_core::{LeaseAttrs, NetworkConfig, Subnet};
use flannel_store::{
    ConfigText, Lifetime, NewRecord, Record, Registry, RegistryError, Snapshot, network_config,
};

use crate::{Backends, InvalidOptions};

/// Keeps a subnet for the node with the public addresses in `attrs`.
///
/// # Errors
///
/// If the network does not hand out that subnet, or a node has it.
pub async fn reserve(registry: &dyn Registry, key: &Subnet, attrs: &LeaseAttrs) -> Result<()> {
    let config = network_config(registry).await?;
    ensure!(
        config.admits(key),
        "{key} is not a subnet that this network hands out: {}",
        serde_json::to_string(&config)?
    );
    write_reservation(
        registry,
        key,
        &NewRecord { value: attrs.to_string(), owner: None, ttl: None },
    )
    .await
}

/// Gives a subnet back.
///
/// # Errors
///
/// If there is no such lease, or the store does not delete it.
pub async fn release(registry: &dyn Registry, key: &Subnet) -> Result<()> {
    let record = find(registry, key).await?;
    registry.delete(&record).await.with_context(|| format!("cannot release {key}"))
}

/// The record of a lease.
///
/// # Errors
///
/// If there is none.
pub async fn find(registry: &dyn Registry, key: &Subnet) -> Result<Record> {
    let key = key.to_string();
    let found = registry.list().await?.records.into_iter().find(|record| record.key == key);
    found.with_context(|| format!("there is no lease {key}"))
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
/// [`InvalidOptions`] in it if the configuration cannot be used. Nothing is written then.
pub async fn set_config(
    registry: &dyn Registry,
    json: &str,
    force: bool,
    backends: &Backends,
) -> Result<ConfigText> {
    let config: NetworkConfig = json.parse().map_err(InvalidOptions::new)?;
    if let Err(error) = backends.check(&config)
        && !force
    {
        let reason = anyhow!("{error}; use --force to store it for other programs");
        return Err(InvalidOptions::new(reason).into());
    }
    let was = registry.config().await?;
    let orphans = orphans(&config, &registry.list().await?);
    if !orphans.is_empty() && !force {
        let named: Vec<_> = orphans.iter().take(5).map(ToString::to_string).collect();
        bail!(
            "{} leases do not fit this configuration ({}{}): release them first, or use --force",
            orphans.len(),
            named.join(", "),
            if orphans.len() > named.len() { ", ..." } else { "" }
        );
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
async fn write_reservation(registry: &dyn Registry, key: &Subnet, write: &NewRecord) -> Result<()> {
    match registry.create(&key.to_string(), write).await {
        Ok(_) => Ok(()),
        Err(RegistryError::Conflict { current: Some(record) })
            if record.lifetime == Lifetime::Unbounded && record.owner.is_none() =>
        {
            registry.update(&record, write).await?;
            Ok(())
        }
        Err(RegistryError::Conflict { current: Some(record) }) => bail!(
            "{key} is leased to {}: release it first",
            record.owner.map_or_else(|| "a node without a name".into(), |owner| owner.to_string())
        ),
        Err(error) => Err(error.into()),
    }
}
