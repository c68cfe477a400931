//! The firewall around a backend.

use std::{sync::Arc, time::Duration};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_hostgw::HostGw;
use flannel_core::{
    Backend, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, Peers, SyncReport, testing::FakeBackend,
};
use flannel_firewall::{FIREWALL, FirewallOptions, Firewalled, Masquerade, ModeChoice};
use flannel_testbed::{Host, Powerless};
use tokio::time::timeout;

use crate::world::{Mode, World, config};

const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#;

fn make(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
    let inner = Arc::new(HostGw::new(config, finder).unwrap());
    let options = FirewallOptions {
        mode: ModeChoice::Nftables,
        masquerade: Masquerade::RandomPorts,
        ..FirewallOptions::default()
    };
    Arc::new(Firewalled::new(inner, host.namespace(), options))
}

/// How many rules a sync wrote.
fn written(report: &SyncReport) -> u64 {
    report.counters["firewall_rules_added"] + report.counters["firewall_rules_removed"]
}

type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

/// A backend with a firewall around it is a backend.
mod contract {
    flannel_core::network_conformance!(
        super::KernelWorld::new(super::DUAL, super::make as super::Make),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn one_sync_one_drift_and_one_teardown_are_of_both() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let fake = FakeBackend::new([192, 0, 2, 1].into());
        let backend =
            Firewalled::new(Arc::new(fake.clone()), world.node().namespace(), world.options());
        let attrs = backend.advertise(None).await.unwrap();
        let own = Lease::new("10.244.1.0-24&fd00:10:244:1::-64".parse().unwrap(), attrs.clone());
        let attrs = LeaseAttrs { public_ip: Some([192, 0, 2, 2].into()), ..attrs };
        let peer = Lease::new("10.244.2.0-24&fd00:10:244:2::-64".parse().unwrap(), attrs);
        let empty = world.everything().await;
        let mut network = backend.start(&own).await.unwrap();
        assert_eq!(world.everything().await, empty, "a start writes no rules");
        let mut peers = Peers::new(config(), own.clone());
        peers.fold(LeaseEvent::reset(vec![own, peer]));

        let report = network.sync(&peers).await.unwrap();
        assert_eq!(report.added, 1, "peers are counted by themselves");
        let mode = if mode == Mode::Nftables { "nftables" } else { "iptables" };
        assert_eq!((&*report.properties[FIREWALL], report.is_exact()), (mode, true));
        assert!(written(&report) > 0);
        let again = network.sync(&peers).await.unwrap();
        assert_eq!((again.writes(), written(&again)), (0, 0));
        let before = world.ours().await;

        fake.meddle(|routes| routes.clear());
        timeout(SECOND, network.drifted()).await.unwrap().unwrap();
        let report = network.sync(&peers).await.unwrap();
        assert_eq!((report.added, written(&report)), (1, 0));

        world.run("iptables -t nat -F; nft delete table ip flannel-ipv4 || true").await;
        timeout(SECOND, network.drifted()).await.unwrap().unwrap();
        let report = network.sync(&peers).await.unwrap();
        assert_eq!(report.added, 0);
        assert!(written(&report) > 0 && report.repaired.by_kind["chain"] > 0, "{report:?}");
        assert_eq!(world.ours().await, before);

        network.teardown().await.unwrap();
        assert_eq!(fake.routes().len(), 0);
        assert!(!world.everything().await.to_lowercase().contains("flannel"));
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_impossible_is_refused_before_anything_is_touched() {
    let world = World::new(Mode::IptablesNft).await;
    let fake = FakeBackend::new([192, 0, 2, 1].into());
    let options = FirewallOptions { tool_folders: vec!["/nonexistent".into()], ..world.options() };
    let backend = Firewalled::new(Arc::new(fake.clone()), world.node().namespace(), options);
    let attrs = backend.advertise(None).await.unwrap();
    let own = Lease::new("10.244.1.0-24".parse().unwrap(), attrs);
    let powerless = Powerless::enter();
    let error = backend.start(&own).await.unwrap_err();
    drop(powerless);
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("iptables-restore are not installed"), "{error}");
    assert!(fake.started().is_empty());
}

const SECOND: Duration = Duration::from_secs(1);
