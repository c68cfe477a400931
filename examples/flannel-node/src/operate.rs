//! `flannel-node leases` and `flannel-node config`.

use std::{
    fs,
    io::{IsTerminal, stderr, stdin},
    net::IpAddr,
};

use anyhow::{Context, Result, anyhow, ensure};
use flannel_core::{LeaseAttrs, NetworkConfig};
use flannel_daemon::{Backends, Stores, operate};
use flannel_store::{Lifetime, Record, Registry};
use tracing::warn;

use crate::{
    args::{ConfigCommand, LeasesCommand, StoreArgs},
    output::say,
};

/// Carries out a command on leases.
pub(crate) async fn leases(command: LeasesCommand) -> Result<()> {
    match command {
        LeasesCommand::List(store) => {
            let snapshot = open(&store).await?.list().await?;
            say!("{:28} {:20} {:16} {:10} LIFE", "LEASE", "NODE", "ADDRESS", "BACKEND");
            for record in &snapshot.records {
                say!("{}", line(record));
            }
        }
        LeasesCommand::Show { key, store } => {
            let record = operate::find(open(&store).await?.as_ref(), &key).await?;
            say!("{}", record.value.map_err(|reason| anyhow!("{key}: {reason}"))?);
        }
        LeasesCommand::Reserve { key, public_ip, public_ipv6, store } => {
            let attrs = LeaseAttrs { public_ip, public_ipv6, ..LeaseAttrs::default() };
            operate::reserve(open(&store).await?.as_ref(), &key, &attrs).await?;
            say!("{key} is reserved for {}", attrs.address().context("no address is given")?);
        }
        LeasesCommand::Release { key, yes, store } => {
            let registry = open(&store).await?;
            let record = operate::find(registry.as_ref(), &key).await?;
            if let Some(consequence) = operate::consequence(&record)
                && !yes
            {
                agree(&consequence)?;
            }
            operate::release(registry.as_ref(), &key).await?;
            say!("{key} is released");
        }
    }
    Ok(())
}

/// Carries out a command on the configuration.
pub(crate) async fn config(command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check { json } => {
            let config =
                with_warnings(&json, || operate::check_config(&json, &Backends::default()))?;
            say!("{}", serde_json::to_string_pretty(&config)?);
        }
        ConfigCommand::Get(store) => {
            let stored = open(&store).await?.config().await?;
            let text =
                stored.text.with_context(|| format!("no network config in {}", stored.place))?;
            say!("{}", text.trim_end());
        }
        ConfigCommand::Set { json, force, store } => {
            let registry = open(&store).await?;
            let backends = Backends::default();
            // What is wrong with it is said below.
            let _ = with_warnings(&json, || operate::check_config(&json, &backends));
            let was = operate::set_config(registry.as_ref(), &json, force, &backends).await?;
            say!(
                "stored in {}; running nodes adopt what they can, and their status says what has to wait",
                was.place
            );
        }
        ConfigCommand::RotateKey { psk_file, store } => {
            let preshared_key = psk_file.map(|file| {
                let read = fs::read_to_string(&file);
                read.with_context(|| format!("cannot read the preshared key {}", file.display()))
            });
            let preshared_key = preshared_key.transpose()?;
            let preshared_key = preshared_key.as_deref().map(str::trim);
            let registry = open(&store).await?;
            let backends = Backends::default();
            let was = operate::rotate_key(registry.as_ref(), preshared_key, &backends).await?;
            say!("stored in {}; flannel-node status shows how far nodes have moved", was.place);
        }
    }
    Ok(())
}

/// Says on standard error which keys nobody reads.
fn with_warnings<T>(json: &str, check: impl FnOnce() -> T) -> T {
    let warnings = tracing_subscriber::fmt().with_writer(stderr).with_ansi(stderr().is_terminal());
    let warnings = warnings.without_time().with_target(false);
    tracing::subscriber::with_default(warnings.finish(), || {
        for key in NetworkConfig::unknown_keys(json) {
            warn!(key, "a network config has no such key");
        }
        check()
    })
}

async fn open(args: &StoreArgs) -> Result<Box<dyn Registry>> {
    Ok(Stores::default().open(&args.options()).await?)
}

/// Asks a person, if there is one.
fn agree(consequence: &str) -> Result<()> {
    ensure!(stdin().is_terminal(), "{consequence}; give --yes to do it all the same");
    eprint!("{consequence}. Release it? [y/N] ");
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "yes"), "it stays");
    Ok(())
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
