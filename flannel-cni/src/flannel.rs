//! Connects containers to flannel's network, as flannel's own plugin does: the node's subnet becomes the configuration of another
//! plugin, which does the work. One of this crate does it in process.
//!
//! What that plugin was told for a container is kept in a file of `dataDir`, with the name and content that flannel's plugin gives
//! it, so that either one's `DEL` ends the other's `ADD`, whatever the subnet is by then.

mod daemon;
mod flannel_keys;
mod records;
mod render;
mod subnet_env;

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, sleep};

pub use self::subnet_env::SubnetEnv;
use self::{flannel_keys::Flannel, records::Records};
use crate::{
    delegate::{self, Role},
    plugin::Call,
    protocol::{AddResult, Code, Config, Error, Verb},
};

pub(crate) async fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    let config = match call.environment.verb {
        Verb::Del | Verb::Gc => Flannel::read_for_removal(&call.config),
        _ => Flannel::read(&call.config)?,
    };
    match call.environment.verb {
        Verb::Add => add(call, &config).await.map(Some),
        Verb::Check => check(call, &config).await.map(|()| None),
        Verb::Del => del(call, &config).await.map(|()| None),
        Verb::Gc => gc(call, &config).await.map(|()| None),
        Verb::Status => status(call, &config).await.map(|()| None),
        Verb::Version => Ok(None),
    }
}

async fn add(call: &Call, config: &Flannel) -> Result<AddResult, Error> {
    let subnet = wait_for_subnet(config).await?;
    let delegated = render::delegate(&call.config, config, &subnet)?;
    // Before anything is made, so that whatever comes of it can be undone.
    Records::new(&config.data_dir, &call.config.name)
        .write(&call.environment.container_id, &delegated)?;
    delegate::add(call, Role::Main, &kind(&delegated)?, delegated).await
}

async fn check(call: &Call, config: &Flannel) -> Result<(), Error> {
    let id = &call.environment.container_id;
    let records = Records::new(&config.data_dir, &call.config.name);
    let Some(mut delegated) = records.read(id)?.filter(|record| records.is_ours(record)) else {
        let folder = config.data_dir.display();
        return Err(Error::new(Code::NotAsExpected, format!("no record of {id} in {folder}")));
    };
    // What the runtime knows of this attachment.
    for key in ["cniVersion", "prevResult"] {
        if let Some(value) = call.config.object.get(key) {
            delegated.insert(key.to_owned(), value.clone());
        }
    }
    delegate::run(call, Verb::Check, Role::Main, &kind(&delegated)?, delegated).await.map(drop)
}

async fn del(call: &Call, config: &Flannel) -> Result<(), Error> {
    let records = Records::new(&config.data_dir, &call.config.name);
    let id = &call.environment.container_id;
    let (delegated, is_ours) = match records.read(id) {
        Ok(Some(delegated)) if records.is_ours(&delegated) => (delegated, true),
        // It is named after the container alone: there may be several interfaces, also of other networks. The delegate needs no more than
        // what is to be had without, and has nothing to do if there is nothing.
        Ok(other) => (for_removal(call, config)?, other.is_none()),
        // What a full disk left of it.
        Err(error) if error.code == Code::Decoding => (for_removal(call, config)?, true),
        Err(error) => return Err(error),
    };
    delegate::run(call, Verb::Del, Role::Main, &kind(&delegated)?, delegated).await?;
    // Only now: a DEL that failed is repeated.
    if is_ours { records.remove(id) } else { Ok(()) }
}

/// What the delegate is told to remove things, also when the node has no subnet any more.
fn for_removal(call: &Call, config: &Flannel) -> Result<Map<String, Value>, Error> {
    let subnet = subnet_env::read(&config.subnet_file).unwrap_or_default();
    render::delegate(&call.config, config, &subnet)
}

async fn gc(call: &Call, config: &Flannel) -> Result<(), Error> {
    let attachments = call.config.valid_attachments()?;
    let mut delegated = for_removal(call, config)?;
    let listed = attachments
        .iter()
        .map(|it| json!({"containerID": it.container_id, "ifname": it.interface}));
    delegated.insert("cni.dev/valid-attachments".to_owned(), listed.collect());
    delegate::run(call, Verb::Gc, Role::Main, &kind(&delegated)?, delegated).await?;
    // Only now: a DEL goes by them.
    let valid: HashSet<&str> = attachments.iter().map(|it| &*it.container_id).collect();
    Records::new(&config.data_dir, &call.config.name).retain(&valid)
}

/// Whether pods can be connected. A node's pods suffer if this fails, because it counts as not ready then: a daemon that is replaced,
/// or that does not answer, is no reason.
async fn status(call: &Call, config: &Flannel) -> Result<(), Error> {
    let subnet = match subnet_env::read(&config.subnet_file) {
        Ok(subnet) => subnet,
        Err(error) => {
            let error = explained(config, error).await;
            return Err(Error { code: Code::NotAvailable, ..error });
        }
    };
    let readiness = daemon::ask(&config.subnet_file).await;
    if let Some(reason) = readiness.and_then(|readiness| readiness.lasting_reason()) {
        return Err(Error::new(Code::LimitedConnectivity, reason)
            .with_details("flannel-node status on the node has more"));
    }
    let delegated = render::delegate(&call.config, config, &subnet)?;
    delegate::run(call, Verb::Status, Role::Main, &kind(&delegated)?, delegated).await.map(drop)
}

/// The node's subnet. At the start of a node pods may come before flannel has it.
async fn wait_for_subnet(config: &Flannel) -> Result<SubnetEnv, Error> {
    let deadline = Instant::now() + config.wait;
    loop {
        match subnet_env::read(&config.subnet_file) {
            Err(error) if error.code == Code::TryAgainLater && Instant::now() < deadline => {
                sleep(LOOK).await;
            }
            Err(error) => return Err(explained(config, error).await),
            Ok(subnet) => return Ok(subnet),
        }
    }
}

/// The error with what the daemon says about it.
async fn explained(config: &Flannel, error: Error) -> Error {
    let reason = daemon::ask(&config.subnet_file).await.and_then(|readiness| readiness.reason());
    let socket = daemon::socket(&config.subnet_file);
    match reason {
        Some(reason) => error.with_details(reason),
        None if socket.exists() => {
            error.with_details(format!("flannel-node does not answer on {}", socket.display()))
        }
        None => error,
    }
}

/// The plugin that a rendered configuration is for.
fn kind(delegated: &Map<String, Value>) -> Result<String, Error> {
    let kind = delegated.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        return Err(Error::new(Code::InvalidConfig, "the delegate's configuration has no type"));
    }
    Ok(kind.to_owned())
}

/// For [`fuzzing`](crate::fuzzing).
pub(crate) fn read(config: &Config) {
    let _ = Flannel::read(config);
    let flannel = Flannel::read_for_removal(config);
    render::delegate(config, &flannel, &SubnetEnv::default()).expect("removals need no more");
}

/// How often the file is looked for.
const LOOK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(subnet_file: &Path) -> Flannel {
        let config = json!({"name": "n", "subnetFile": subnet_file}).to_string();
        Flannel::read(&Config::parse(config.as_bytes()).unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn add_waits_a_moment_for_the_subnet_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let config = config(&path);
        let started = Instant::now();
        let error = wait_for_subnet(&config).await.unwrap_err();
        assert_eq!((error.code, started.elapsed()), (Code::TryAgainLater, Duration::from_secs(1)));
        let text = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.1.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let write = async {
            sleep(Duration::from_millis(500)).await;
            std::fs::write(&path, text).unwrap();
        };
        let (subnet, ()) = tokio::join!(wait_for_subnet(&config), write);
        assert_eq!(subnet.unwrap().mtu, 1450);
    }
}
