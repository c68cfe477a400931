//! Connects containers to a bridge of the node, as containernetworking's `bridge` does.
//!
//! Addresses come before devices, so that a node without a free one is left as it was. The pair is made in one message from the
//! node's side, as a port of the bridge and up; another batch inside of the container does the rest. Nothing waits for a fixed
//! time: the kernel tells when the port is up.

mod add;
mod bandwidth;
mod bridge_keys;
mod check;
mod del;
mod ensure;
mod gateways;
mod pair;
mod pod;
mod vlans;

use self::bridge_keys::Bridge;
use crate::{
    delegate::{self, Role},
    plugin::Call,
    protocol::{AddResult, Arguments, Code, Config, Error, Verb, Version},
};

pub(crate) async fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    let read = || Bridge::read(&call.config, &call.environment.arguments()?);
    match call.environment.verb {
        Verb::Add => add(call, &read()?).await.map(Some),
        Verb::Check => check::check(call, &read()?).await.map(|()| None),
        Verb::Del => del::del(call).await.map(|()| None),
        Verb::Gc => del::gc(call).await.map(|()| None),
        Verb::Status => ask_ipam(call, read()?.ipam.as_deref(), Verb::Status).await.map(|()| None),
        Verb::Version => Ok(None),
    }
}

async fn add(call: &Call, bridge: &Bridge) -> Result<AddResult, Error> {
    if bridge.ipam.is_none() && call.config.version <= Version::V0_2_0 {
        let message =
            format!("CNI {} cannot express a result without an address", call.config.version);
        return Err(Error::new(Code::IncompatibleVersion, message)
            .with_details("without ipam the configuration needs cniVersion 0.3.0 or newer"));
    }
    add::add(call, bridge).await
}

/// Passes a verb on to the IPAM plugin.
async fn ask_ipam(call: &Call, plugin: Option<&str>, verb: Verb) -> Result<(), Error> {
    let Some(plugin) = plugin else { return Ok(()) };
    delegate::run(call, verb, Role::Ipam, plugin, call.config.object.clone()).await.map(drop)
}

/// For [`fuzzing`](crate::fuzzing).
pub(crate) fn read(config: &Config, arguments: &Arguments) {
    let _ = bridge_keys::ipam_for_removal(config);
    let Ok(bridge) = Bridge::read(config, arguments) else { return };
    if let Ok(Some(mut previous)) = config.previous() {
        let _ = gateways::complete(&mut previous, &bridge, 0);
    }
}
