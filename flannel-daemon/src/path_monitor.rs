//! Looks at the ways to peers, and acts on what is found.

pub(crate) mod path_status;
mod probe_targets;
mod reporter;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use flannel_backend::{PathFacts, Paths, UplinkFinder};
use flannel_core::{NetworkConfig, NodeHandle};
use flannel_netlink::state::IpFamily;
use flannel_probe::{Findings, Prober, ProberHandle};
use tokio::time::{sleep, timeout};
use tracing::info;

use self::reporter::Reporter;
use crate::handle::DaemonHandle;

pub(crate) use self::{path_status::state, reporter::remedy};

/// What is needed to look at the ways to the peers of one node.
#[derive(Debug)]
pub(crate) struct PathMonitor {
    pub(crate) prober: Prober,
    pub(crate) handle: ProberHandle,
    pub(crate) finder: UplinkFinder,
    pub(crate) config: NetworkConfig,
    /// Where the networks look.
    pub(crate) paths: Paths,
}

/// What was found and what was done about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probed {
    pub(crate) findings: Arc<Findings>,
    /// The families in whose tunnels checksums are not left to the hardware since they were found damaged.
    pub(crate) software_checksums: BTreeSet<IpFamily>,
}

/// Asks, answers and acts until the node ends.
pub(crate) async fn run(monitor: PathMonitor, node: NodeHandle, daemon: DaemonHandle) {
    let PathMonitor { prober, handle, finder, config, paths } = monitor;
    info!("peers are asked what the ways to them take, and answered");
    tokio::select! {
        never = prober.run() => match never {},
        () = aim(&handle, &finder, node) => {}
        () = act(handle.clone(), &finder, &config, &paths, &daemon) => {}
    }
}

/// Keeps the prober at the peers that there are. Ends with the node.
async fn aim(prober: &ProberHandle, finder: &UplinkFinder, mut node: NodeHandle) {
    loop {
        if let (Some(peers), Some(transports)) = (node.peers().await, node.transports().await)
            && let Ok(uplink) = finder.find().await
        {
            let transports = transports.into_iter().collect();
            prober.set_targets(probe_targets::targets(
                peers.config(),
                (&uplink.interface).into(),
                &peers,
                &transports,
            ));
        }
        // A node that is busy changes many times a second.
        sleep(GATHER).await;
        if let Ok(None) = timeout(LOOK, node.changed()).await {
            return;
        }
    }
}

/// Tells networks and operators what is found. Ends with the prober.
async fn act(
    mut prober: ProberHandle,
    finder: &UplinkFinder,
    config: &NetworkConfig,
    paths: &Paths,
    daemon: &DaemonHandle,
) {
    let mut probed = Probed::default();
    let mut reporter = Reporter::new(config);
    while let Some(findings) = prober.changed().await {
        for family in IpFamily::ALL {
            // It stays so: that packets arrive now does not say that they would arrive otherwise.
            if findings.corrupts_overlay(family) {
                probed.software_checksums.insert(family);
            }
        }
        let mut facts = PathFacts::default();
        facts.mtus = findings.limits();
        facts.software_checksums.clone_from(&probed.software_checksums);
        paths.set(facts);
        let uplink = finder.find().await.map(|uplink| uplink.interface.name);
        if let Some(config) = daemon.status().and_then(|status| status.config) {
            reporter.follow(&config);
        }
        reporter.report(
            &probed.findings,
            &findings,
            uplink.as_deref().unwrap_or("the network card"),
        );
        probed.findings = findings;
        daemon.probed(probed.clone());
    }
}

/// Changes of a node are gathered for so long.
const GATHER: Duration = Duration::from_secs(1);
/// How often the uplink is looked at without them: its MTU or addresses may be others.
const LOOK: Duration = Duration::from_secs(30);
