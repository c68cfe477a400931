//! The backend: what we publish, and how it starts and is taken down.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use flannel_backend::{Uplink, UplinkFinder};
use flannel_core::{
    Backend, BackendError, Lease, LeaseAttrs, Network, NetworkConfig, RawJson, error_chain,
};
use flannel_netlink::Namespace;
use tokio::sync::OnceCell;
use tracing::{info, warn};

use crate::{
    KIND,
    command::{Shell, shown},
    config::Commands,
    network::ExtensionNetwork,
    plan::{Served, Target},
    record::Record,
};

/// Serves peers by the commands in the network's configuration.
#[derive(Debug)]
pub struct Extension {
    commands: Commands,
    network: String,
    finder: UplinkFinder,
    state_file: PathBuf,
    /// What `PreStartupCommand` printed: it is run once in the life of this value.
    published: OnceCell<String>,
}

impl Extension {
    /// The backend of the network in `config`, on the uplink that `finder` finds. Commands are run in the namespace of `finder`. The
    /// record of peers is kept in `state_file`, which belongs to this network of this host alone; nobody else may be able to write
    /// it or its folder.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] if an option is malformed.
    pub fn new(
        config: &NetworkConfig,
        finder: UplinkFinder,
        state_file: impl Into<PathBuf>,
    ) -> Result<Self, BackendError> {
        let options = config.backend().options();
        let commands = Commands::read(&options)
            .map_err(|source| BackendError::Config { backend: KIND.into(), source })?;
        for key in Commands::unknown(&options) {
            warn!(key, "the extension backend has no such option");
        }
        let network = config.ipv4().map(|range| range.network().to_string()).unwrap_or_default();
        let (state_file, published) = (state_file.into(), OnceCell::new());
        Ok(Self { commands, network, finder, state_file, published })
    }

    fn shell(&self) -> Shell {
        Shell { namespace: self.finder.namespace().clone(), timeout: self.commands.timeout }
    }
}

#[async_trait]
impl Backend for Extension {
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let Uplink { public_ip, public_ipv6, .. } = self.finder.find_for(previous).await?;
        let mut attrs = LeaseAttrs {
            public_ip,
            public_ipv6,
            backend_type: KIND.into(),
            ..LeaseAttrs::default()
        };
        if let Some(text) = &self.commands.pre_startup {
            let shell = self.shell();
            let run = || lifecycle(&shell, "PreStartupCommand", text, &[]);
            let json = serde_json::Value::from(self.published.get_or_try_init(run).await?.as_str());
            attrs.backend_data = RawJson::new(&json.to_string()).ok();
        }
        Ok(attrs)
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let uplink = self.finder.find_for(Some(lease)).await?;
        let watch = self.finder.watch(&uplink)?;
        let mut record = Record::load(&self.state_file)
            .map_err(|error| unwritable("read", &self.state_file, error))?;
        if record.commands != self.commands {
            // They are the ones who know how to remove what they made.
            if let Some(error) = remove_peers(self.finder.namespace(), &mut record).await {
                let error = error_chain(&error);
                warn!(%error, "the commands are others now: what those before made for a peer may be left");
            }
            record.served.clear();
        }
        record.commands = self.commands.clone();
        record.network = self.network.clone();
        record.own = Target::of(lease);
        record.save().map_err(|error| unwritable("write", &self.state_file, error))?;
        if let Some(text) = &self.commands.post_startup {
            let variables = own_variables(&record);
            lifecycle(&self.shell(), "PostStartupCommand", text, &variables).await?;
        }
        let namespace = self.finder.namespace();
        Ok(Box::new(ExtensionNetwork::new(self.shell(), namespace, watch, record)?))
    }
}

/// Removes all that commands have made according to the record in `state_file`, with the commands that made it: each peer by its
/// `SubnetRemoveCommand`, then `ShutdownCommand`. For when no node runs. Fine if there is no record.
///
/// # Errors
///
/// [`BackendError::Kernel`] with the first command that failed; all others are run all the same, and the record stays.
///
/// # Cancel safety
///
/// Dropping it leaves the rest, and the record.
pub async fn remove_all(namespace: &Namespace, state_file: &Path) -> Result<(), BackendError> {
    let mut record =
        Record::load(state_file).map_err(|error| unwritable("read", state_file, error))?;
    take_down(namespace, &mut record).await
}

pub(crate) async fn take_down(
    namespace: &Namespace,
    record: &mut Record,
) -> Result<(), BackendError> {
    let mut failed = remove_peers(namespace, record).await;
    if let Some(text) = &record.commands.shutdown {
        let shell = Shell { namespace: namespace.clone(), timeout: record.commands.timeout };
        let shutdown = lifecycle(&shell, "ShutdownCommand", text, &own_variables(record)).await;
        failed = failed.or_else(|| shutdown.err());
    }
    match failed {
        Some(error) => Err(error),
        None => record.delete().map_err(|error| unwritable("remove", record.path(), error)),
    }
}

/// Runs `SubnetRemoveCommand` of the record for all its peers. Returns the first failure.
async fn remove_peers(namespace: &Namespace, record: &mut Record) -> Option<BackendError> {
    let text = record.commands.subnet_remove.clone()?;
    let shell = Shell { namespace: namespace.clone(), timeout: record.commands.timeout };
    let mut failed = None;
    for (subnet, served) in record.served.clone() {
        // Whoever goes on if this ends here knows whom it cannot be sure of, and begins with the next.
        record.served.insert(subnet, Served { is_sure: false, ..served.clone() });
        let before = record.save();
        let target = &served.target;
        match shell.run(&text, &target.variables(), &target.data).await {
            // Of who was not added for sure there may be nothing to remove.
            Err(source) if served.is_sure => {
                let operation = format!("run SubnetRemoveCommand for {subnet}");
                failed.get_or_insert(BackendError::Kernel { operation, source: source.into() });
                record.served.insert(subnet, served);
            }
            _ => drop(record.served.remove(&subnet)),
        }
        let after = record.save();
        if let Err(error) = before.and(after) {
            failed.get_or_insert_with(|| unwritable("write", record.path(), error));
        }
    }
    failed
}

/// `NETWORK`, and what peers have.
fn own_variables(record: &Record) -> Vec<(&'static str, &str)> {
    let network = [("NETWORK", record.network.as_str())];
    network.into_iter().chain(record.own.variables()).collect()
}

async fn lifecycle(
    shell: &Shell,
    name: &'static str,
    text: &str,
    variables: &[(&str, &str)],
) -> Result<String, BackendError> {
    let output = shell.run(text, variables, "").await.map_err(|source| BackendError::Kernel {
        operation: format!("run {name}"),
        source: source.into(),
    })?;
    info!("{name} was run{}", shown(&output));
    Ok(output)
}

pub(crate) fn unwritable(verb: &str, path: &Path, error: std::io::Error) -> BackendError {
    BackendError::Kernel {
        operation: format!("{verb} the record of peers {}", path.display()),
        source: error.into(),
    }
}
