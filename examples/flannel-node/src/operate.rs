//! What operators do with a network's store: look at leases and configuration, and change them.

use std::{
    io::{IsTerminal, stderr},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flannel_core::{LeaseAttrs, NetworkConfig, Subnet};
use flannel_store::{
    EtcdRegistry, FileRegistry, Lifetime, NewRecord, Record, Registry, RegistryError, Snapshot,
    network_config,
};
use tracing::warn;

use crate::{
    args::{ConfigCommand, LeasesCommand, StoreArg, StoreArgs},
    mistake::Mistake,
    run,
};

/// Carries out a command on leases.
pub(crate) async fn leases(command: LeasesCommand) -> Result<()> {
    match command {
        LeasesCommand::List(store) => {
            let Snapshot { records, .. } = open(&store).await?.list().await?;
            println!("{:28} {:20} {:16} {:10} LIFE", "LEASE", "NODE", "ADDRESS", "BACKEND");
            for record in &records {
                println!("{}", line(record));
            }
            Ok(())
        }
        LeasesCommand::Show { key, store } => {
            let record = find(open(&store).await?.as_ref(), &key).await?;
            println!("{}", record.value.map_err(|reason| anyhow::anyhow!("{key}: {reason}"))?);
            Ok(())
        }
        LeasesCommand::Reserve { key, public_ip, public_ipv6, store } => {
            let registry = open(&store).await?;
            let config = network_config(registry.as_ref()).await?;
            ensure!(
                config.admits(&key),
                "{key} is not a subnet that this network hands out: {}",
                serde_json::to_string(&config)?
            );
            let attrs = LeaseAttrs { public_ip, public_ipv6, ..LeaseAttrs::default() };
            let write = NewRecord { value: attrs.to_string(), owner: None, ttl: None };
            reserve(registry.as_ref(), &key, &write).await?;
            println!("{key} is reserved for {}", attrs.address().context("no address is given")?);
            Ok(())
        }
        LeasesCommand::Release { key, store } => {
            let registry = open(&store).await?;
            let record = find(registry.as_ref(), &key).await?;
            registry.delete(&record).await.with_context(|| format!("cannot release {key}"))?;
            println!("{key} is released");
            Ok(())
        }
    }
}

/// Carries out a command on the configuration.
pub(crate) async fn config(command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check { json } => {
            let config: NetworkConfig = json.parse().map_err(Mistake::new)?;
            look_at(&json, &config).map_err(Mistake::new)?;
            println!("{}", serde_json::to_string_pretty(&config)?);
            Ok(())
        }
        ConfigCommand::Get(store) => {
            let stored = open(&store).await?.config().await?;
            let text =
                stored.text.with_context(|| format!("no network config in {}", stored.place))?;
            println!("{}", text.trim_end());
            Ok(())
        }
        ConfigCommand::Set { json, force, store } => {
            let config: NetworkConfig = json.parse().map_err(Mistake::new)?;
            if let Err(error) = look_at(&json, &config)
                && !force
            {
                let reason = anyhow!("{error:#}; use --force to store it for other programs");
                return Err(Mistake::new(reason).into());
            }
            let registry = open(&store).await?;
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
            registry.set_config(&was, &json).await?;
            println!(
                "stored in {}; running nodes take it up when they are started again",
                was.place
            );
            Ok(())
        }
    }
}

/// Whether nodes of this program can use `config`, which was written as `json`. Says which keys nobody reads.
fn look_at(json: &str, config: &NetworkConfig) -> Result<()> {
    let warnings = tracing_subscriber::fmt().with_writer(stderr).with_ansi(stderr().is_terminal());
    let warnings = warnings.without_time().with_target(false);
    tracing::subscriber::with_default(warnings.finish(), || {
        for key in NetworkConfig::unknown_keys(json) {
            warn!(key, "a network config has no such key");
        }
        run::ensure_usable(config)
    })
}

/// The leases that count and that nobody could have got under `config`.
fn orphans(config: &NetworkConfig, snapshot: &Snapshot) -> Vec<Subnet> {
    let counting = snapshot.records.iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let subnets = counting.filter_map(|record| record.key.parse().ok());
    subnets.filter(|subnet| !config.admits(subnet)).collect()
}

/// Writes a reservation where there is nothing, or in the place of one.
async fn reserve(registry: &dyn Registry, key: &Subnet, write: &NewRecord) -> Result<()> {
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

async fn find(registry: &dyn Registry, key: &Subnet) -> Result<Record> {
    let key = key.to_string();
    let found = registry.list().await?.records.into_iter().find(|record| record.key == key);
    found.with_context(|| format!("there is no lease {key}"))
}

fn line(record: &Record) -> String {
    let attrs = record.value.as_ref().map_err(Clone::clone);
    let attrs = attrs.and_then(|value| value.parse::<LeaseAttrs>().map_err(|e| e.to_string()));
    let life = match record.lifetime {
        Lifetime::Lapsed => "lapsed",
        Lifetime::Unbounded => "reserved",
        _ => "leased",
    };
    let node = record.owner.as_ref().map_or("-", |owner| owner.as_str());
    match attrs {
        Ok(attrs) => {
            let address = attrs.address().map_or_else(|| "-".into(), |ip: IpAddr| ip.to_string());
            let backend = if attrs.backend_type.is_empty() { "-" } else { &*attrs.backend_type };
            format!("{:28} {node:20} {address:16} {backend:10} {life}", record.key)
        }
        Err(reason) => format!("{:28} not a lease: {reason}", record.key),
    }
}

/// The registry that the command line names. Operators look at what is there: a folder is not made.
pub(crate) async fn open(args: &StoreArgs) -> Result<Box<dyn Registry>> {
    match &args.store {
        Some(StoreArg::File(path)) => {
            ensure!(Path::new(path).is_dir(), "there is no folder {}", path.display());
            Ok(Box::new(FileRegistry::open(path).await?))
        }
        Some(StoreArg::Memory) => bail!("a store in memory has no leases outside of its node"),
        None => Ok(Box::new(EtcdRegistry::new(&args.etcd()).map_err(Mistake::new)?)),
    }
}
