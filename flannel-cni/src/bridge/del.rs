use flannel_netlink::{delete_link, link_by_name};

use super::{ask_ipam, bridge_keys::ipam_for_removal};
use crate::{
    kernel::refused,
    plugin::Call,
    protocol::{Error, Verb},
    rules::{masquerade, spoof_check},
};

/// Removes the interface, and then gives its addresses back. What is gone already is fine.
pub(super) async fn del(call: &Call) -> Result<(), Error> {
    if let Some(sandbox) = call.sandbox()? {
        let name = &*call.environment.interface;
        let ((), mut connection) = sandbox.connect(|| ())?;
        let found = link_by_name(&mut connection, name).await;
        let what = |verb| format!("failed to {verb} {name:?}");
        if let Some(link) = found.map_err(|error| refused(what("lookup"), &error))? {
            // The other end goes with it.
            delete_link(&mut connection, link.index)
                .await
                .map_err(|error| refused(what("delete"), &error))?;
        }
    }
    let ipam = ipam_for_removal(&call.config);
    Error::of_all([ask_ipam(call, ipam.as_deref(), Verb::Del).await, rules(call).await])
}

/// Removes the rules of the container, also if the configuration does not ask for them any more.
pub(super) async fn rules(call: &Call) -> Result<(), Error> {
    let (host, attachment) = (&call.host, call.attachment());
    Error::of_all([
        spoof_check::remove(host, &attachment).await,
        masquerade::remove(host, &call.config.name, &attachment).await,
    ])
}

/// Removes the rules of containers that the runtime does not know, and has their addresses taken back.
pub(super) async fn gc(call: &Call) -> Result<(), Error> {
    let (host, network, valid) = (&call.host, &call.config.name, call.config.valid_attachments()?);
    let ipam = ipam_for_removal(&call.config);
    Error::of_all([
        ask_ipam(call, ipam.as_deref(), Verb::Gc).await,
        spoof_check::retain(host, network, &valid).await,
        masquerade::retain(host, network, &valid).await,
    ])
}
