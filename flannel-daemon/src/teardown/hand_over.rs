//! The way back to flanneld: what carries packets stays, in flanneld's form.

use std::sync::Arc;

use flannel_backend::{Paths, UplinkFinder, UplinkOptions};
use flannel_core::{
    Backend, BackendError, LeaseAttrs, LeaseEvent, MigrationRecord, NetworkConfig, NodeId, Peers,
    Place, Store, Subnet, SubnetEnv,
};
use flannel_firewall::{FirewallOptions, Firewalled, Masquerade, ModeChoice};
use flannel_netlink::Namespace;
use flannel_store::{LeaseOptions, RegistryStore};
use futures::StreamExt;
use tokio::time::timeout;

use super::{TeardownError, TeardownOptions};
use crate::{
    Backends, InvalidOptions, OpenStore, Stores, backend_source, backends::BackendRequest,
    stores::StoreRequest,
};

/// Starts the network of the node that wrote the subnet file once more, with the leases that the store has, and ends it in flanneld's
/// form. Nothing is touched unless the store answers.
pub(super) async fn hand_over(
    options: &TeardownOptions,
    stores: &Stores,
    env: &SubnetEnv,
    namespace: &Namespace,
    report: &mut impl FnMut(String),
) -> Result<(), TeardownError> {
    let no_subnet = || TeardownError::NoSubnet { subnet_file: options.subnet_file.clone() };
    let held = env.held().ok_or_else(no_subnet)?;
    let request = StoreRequest { options: &options.store, network: None, create: false };
    let store: Arc<dyn Store> = match stores.plan(&request)?.open().await? {
        OpenStore::Registry(registry) => {
            // It only reads, under whatever name.
            let node = NodeId::new("teardown").expect("a word is a node id");
            Arc::new(RegistryStore::new(registry, node, LeaseOptions::default()))
        }
        OpenStore::Orchestrator(it) => it.store(),
        OpenStore::Store(store, _) => store,
    };
    let config = store.config().await?;
    let peers = {
        let first = timeout(DEADLINE, store.watch().next()).await.ok().flatten();
        let Some(LeaseEvent::Reset(leases)) = first.transpose()? else {
            return Err(TeardownError::StoreSilent);
        };
        let own = leases.iter().find(|lease| lease.subnet == held);
        let own = own.ok_or(TeardownError::NoLease { subnet: held })?;
        let mut peers = Peers::new(config.clone(), own.as_ref().clone());
        peers.fold(LeaseEvent::Reset(leases));
        peers
    };
    // The interface that has the published address, wherever the default route leads.
    let LeaseAttrs { public_ip, public_ipv6, .. } = peers.own().attrs;
    let uplink = UplinkOptions { public_ip, public_ipv6, ..UplinkOptions::default() };
    let finder = UplinkFinder::new(namespace, &config, &uplink).map_err(InvalidOptions::new)?;
    let record = backend_source::recall(&options.subnet_file);
    let place = place(record.as_ref(), &config)?;
    let backend = Backends::default().build(&BackendRequest {
        config: &config,
        namespace,
        uplink: &finder,
        node: None,
        paths: &Paths::default(),
        blackhole: false,
        require_encryption: false,
        subnet_file: &options.subnet_file,
        wireguard_key_file: options.wireguard_key_file.as_deref(),
        starts: false,
        place,
    })?;
    let masquerade = match env.ip_masq {
        Some(true) => Masquerade::RandomPorts,
        _ => Masquerade::Off,
    };
    let mode = ModeChoice::of(&config);
    let firewall = FirewallOptions { masquerade, mode, ..FirewallOptions::default() };
    let backend = Firewalled::new(backend, namespace, firewall);
    let mut network = backend.start(peers.own()).await?;
    let synced = network.sync(&peers).await?;
    for fault in &synced.faults {
        report(format!("not as it should be: {}: {fault}", fault.object));
    }
    for problem in &synced.problems {
        report(format!("not as it should be: peer {}: {}", problem.peer, problem.fault));
    }
    match network.hand_over().await {
        Err(BackendError::Unsupported { .. }) => {
            let backend = config.backend().kind().into();
            return Err(TeardownError::KeepsNothing { backend });
        }
        handed_over => handed_over?,
    }
    report(told(&held, peers.len()));
    Ok(())
}

/// Where the only backend of a node is: what there is has its mark.
fn place(record: Option<&MigrationRecord>, config: &NetworkConfig) -> Result<Place, TeardownError> {
    let Some(MigrationRecord { base, beside }) = record else { return Ok(Place::default()) };
    let (from, to) = (base.config.backend().kind(), config.backend().kind());
    if beside.is_some() || from != to {
        return Err(TeardownError::Migrating { from: from.into(), to: to.into() });
    }
    Ok(Place { beside: false, alternate: base.alternate })
}

fn told(held: &Subnet, peers: usize) -> String {
    format!("{held} and the ways to {peers} peers are as flanneld makes them: start it now")
}

/// How long the store may take to list its leases.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use flannel_core::Recorded;

    use super::*;

    #[test]
    fn a_node_that_is_between_two_backends_is_not_handed_over() {
        let config = |kind: &str| {
            let json = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
            json.parse::<NetworkConfig>().unwrap()
        };
        let recorded = |kind, alternate| Recorded { config: config(kind), alternate };
        let (vxlan, moved) = (config("vxlan"), recorded("vxlan", true));
        assert_eq!(place(None, &vxlan).unwrap(), Place::default());
        let record = MigrationRecord { base: moved.clone(), beside: None };
        assert!(place(Some(&record), &vxlan).unwrap().alternate);
        for record in [
            MigrationRecord { base: moved, beside: Some(recorded("host-gw", false)) },
            MigrationRecord { base: recorded("host-gw", false), beside: None },
        ] {
            let error = place(Some(&record), &vxlan).unwrap_err().to_string();
            assert!(error.contains("to vxlan: start it again"), "{error}");
        }
    }
}
