//! etcd loses what it knew while nodes run.

use std::{fs, time::Duration};

use flannel_testbed::Etcd;
use tokio::time::{Instant, sleep};

use super::{
    etcd_members::ip,
    trial::{Trial, dual, eventually},
};

pub(crate) const CONFIG: &str = "/coreos.com/network/config";
pub(crate) const SUBNETS: &str = "/coreos.com/network/subnets/";

/// Nodes on all hosts but the last, where etcd is.
pub(crate) struct World {
    pub(crate) trial: Trial,
    pub(crate) network: String,
    pub(crate) etcd: Etcd,
}

impl World {
    pub(crate) async fn new(nodes: u32, backend: &str) -> Self {
        let mut trial = Trial::new(nodes + 1).await;
        let etcd = Etcd::start(trial.host(nodes as usize), &trial.path("etcd")).await.unwrap();
        let network = dual(backend);
        etcd.ctl(&["put", CONFIG, &network]).await.unwrap();
        trial.options.push(format!("--etcd-endpoints={}", etcd.url()).into());
        Self { trial, network, etcd }
    }

    pub(crate) async fn kill_etcd(&mut self) {
        self.etcd.process().kill().unwrap();
        self.etcd.process().wait().await.unwrap();
    }

    pub(crate) async fn start_etcd(&mut self, data: &str) {
        let host = self.trial.testbed.hosts().last().expect("there is one");
        self.etcd = Etcd::start(host, &self.trial.path(data)).await.unwrap();
    }

    pub(crate) async fn put_config(&self) {
        self.etcd.ctl(&["put", CONFIG, &self.network]).await.unwrap();
    }

    /// Whether all nodes are as they were, with the leases they had, and pods heard nothing of it.
    pub(crate) async fn recovers(&self) {
        let trial = &self.trial;
        let keys: Vec<_> = (0..trial.nodes.len()).map(|n| trial.key(n)).collect();
        let start = Instant::now();
        eventually("all leases are in etcd again", async || {
            let stored = self.etcd.ctl(&["get", "--prefix", "--keys-only", SUBNETS]).await.unwrap();
            keys.iter().all(|key| stored.contains(key))
        })
        .await;
        println!("all leases are there {:?} after that", start.elapsed());
        trial.all_ready().await;
        trial.converged().await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_wiped_and_has_no_configuration_for_a_minute_under_vxlan() {
    wiped("vxlan").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_wiped_and_has_no_configuration_for_a_minute_under_host_gw() {
    wiped("host-gw").await;
}

async fn wiped(backend: &str) {
    let mut world = World::new(3, backend).await;
    for _ in 0..3 {
        world.trial.add().await;
    }
    let (traffic, subnets) = (world.trial.traffic(), world.trial.subnets());
    world.kill_etcd().await;
    fs::remove_dir_all(world.trial.path("etcd")).unwrap();
    world.start_etcd("etcd").await;
    sleep(Duration::from_secs(60)).await;
    world.put_config().await;
    world.recovers().await;
    // What is served for some seconds more is over by then.
    sleep(Duration::from_secs(7)).await;
    assert_eq!(world.trial.subnets(), subnets);
    traffic.lost_nothing("etcd wiped").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_restored_from_an_old_snapshot_under_vxlan() {
    restored("vxlan").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_restored_from_an_old_snapshot_under_host_gw() {
    restored("host-gw").await;
}

/// The snapshot lacks the node that came last, and that one is the last to hear of etcd again.
async fn restored(backend: &str) {
    let mut world = World::new(4, backend).await;
    for _ in 0..3 {
        world.trial.add().await;
    }
    let (backup, restored) = (world.trial.path("backup"), world.trial.path("restored"));
    let [backup, restored] = [&backup, &restored].map(|path| path.to_str().unwrap());
    world.etcd.ctl(&["snapshot", "save", backup]).await.unwrap();
    world.trial.add().await;
    let (traffic, subnets) = (world.trial.traffic(), world.trial.subnets());
    world.kill_etcd().await;
    world.etcd.ctl(&["snapshot", "restore", backup, "--data-dir", restored]).await.unwrap();
    // Packets of the node arrive, and nothing comes back.
    let node = world.trial.host(3).ip().to_string();
    ip(world.trial.host(4), &["route", "add", "blackhole", &node]).await;
    world.start_etcd("restored").await;
    sleep(Duration::from_secs(20)).await;
    ip(world.trial.host(4), &["route", "del", "blackhole", &node]).await;
    world.recovers().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.trial.subnets(), subnets);
    traffic.lost_nothing("etcd restored").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_configuration_is_away_for_a_minute_and_a_node_restarts_meanwhile_under_vxlan() {
    without_configuration("vxlan").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_configuration_is_away_for_a_minute_and_a_node_restarts_meanwhile_under_host_gw() {
    without_configuration("host-gw").await;
}

async fn without_configuration(backend: &str) {
    let mut world = World::new(3, backend).await;
    for _ in 0..3 {
        world.trial.add().await;
    }
    let (traffic, subnets) = (world.trial.traffic(), world.trial.subnets());
    world.etcd.ctl(&["del", CONFIG]).await.unwrap();
    let gone = Instant::now();
    eventually("a node says that its configuration is gone", async || {
        world.trial.asked(0, "/status").contains("config_missing")
    })
    .await;
    let mut node = world.trial.nodes.pop().expect("there are three");
    node.kill().unwrap();
    node.wait().await.unwrap();
    let node = world.trial.host(2).spawn(world.trial.command(2)).unwrap();
    world.trial.nodes.push(node);
    sleep(Duration::from_secs(60).saturating_sub(gone.elapsed())).await;
    world.put_config().await;
    world.recovers().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(world.trial.subnets(), subnets);
    traffic.lost_nothing("configuration away").await;
}
