//! Whole nodes with a store: what has to be published, and restarts.

use std::{net::IpAddr, sync::Arc, time::Duration};

use flannel_core::{
    Node, NodeHandle, NodeId, NodeOptions, Status, Stopped,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::{LinkChange, Monitor, Notice, Subject, alter_link, link_by_name};
use flannel_store::MemoryCluster;
use flannel_testbed::{Blocks, Pod, Powerless, Testbed, probe};
use futures::FutureExt;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

use crate::support::{DUAL, IPV4, Kernel, REPAIR, mac, mac_of, make, world};

/// Nodes that find each other through a store.
pub(crate) struct Cluster {
    pub(crate) testbed: Testbed,
    pub(crate) pods: Vec<Pod>,
    pub(crate) handles: Vec<NodeHandle>,
    pub(crate) store: MemoryCluster,
    stops: Vec<oneshot::Sender<()>>,
    nodes: JoinSet<Stopped>,
}

impl Cluster {
    pub(crate) async fn start(config: &str) -> Self {
        let cluster = Self::start_on(Testbed::new(2).await.unwrap(), config).await;
        assert!(cluster.flows(PATIENCE).await);
        cluster
    }

    pub(crate) async fn start_on(testbed: Testbed, config: &str) -> Self {
        let config = config.parse().unwrap();
        let store = MemoryCluster::new(&config);
        let mut cluster = Self {
            store: store.clone(),
            testbed,
            pods: Vec::new(),
            handles: Vec::new(),
            stops: Vec::new(),
            nodes: JoinSet::new(),
        };
        for host in cluster.testbed.hosts() {
            let id: NodeId = host.name().parse().unwrap();
            let backend = make(host, &config);
            let node = Node::from_parts(Arc::new(store.store(id)), backend, NodeOptions::default());
            let mut handle = node.handle();
            let (stop, stopped) = oneshot::channel();
            cluster.nodes.spawn(async move {
                let stop = stopped.map(|_| ());
                node.run_until(stop).await.expect("a node that runs")
            });
            let status = timeout(PATIENCE, handle.wait_for(Status::is_ready)).await;
            let lease = status.expect("ready in time").expect("a node").lease.expect("a lease");
            let blocks = Blocks::new(lease.subnet.ipv4(), lease.subnet.ipv6()).unwrap();
            cluster.pods.push(host.add_pod(blocks).await.unwrap());
            cluster.handles.push(handle);
            cluster.stops.push(stop);
        }
        cluster
    }

    /// Whether packets of all families flow within this time.
    pub(crate) async fn flows(&self, patience: Duration) -> bool {
        let all = async {
            for ip in self.pods[1].endpoint().ips() {
                probe::stream(&self.pods[0], ip, 50).unwrap().flowing().await;
            }
        };
        timeout(patience, all).await.is_ok()
    }

    pub(crate) fn status(&self, node: usize) -> Status {
        self.handles[node].status()
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_new_address_of_the_node_is_followed_and_published() {
    let cluster = Cluster::start(DUAL).await;
    let subnet = cluster.status(0).lease.unwrap().subnet;
    let host = cluster.testbed.host(0);
    let mut kernel = Kernel::of(host);
    let before = kernel.link("flannel.1").await;
    let new = ["192.0.2.77/24".parse().unwrap(), "2001:db8::77/64".parse().unwrap()];
    host.set_addresses(new).await.unwrap();
    assert!(cluster.flows(REPAIR).await);
    let lease = cluster.status(0).lease.unwrap();
    assert_eq!(lease.subnet, subnet);
    assert_eq!(lease.attrs.public_ip, Some([192, 0, 2, 77].into()));
    let local = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    assert_eq!(kernel.vxlan("flannel.1").await.local, local("192.0.2.77"));
    assert_eq!(kernel.vxlan("flannel-v6.1").await.local, local("2001:db8::77"));
    let after = kernel.link("flannel.1").await;
    assert_eq!((after.index, after.mac), (before.index, before.mac), "altered in place");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_mac_that_was_changed_once_is_put_back_and_nothing_published() {
    let cluster = Cluster::start(IPV4).await;
    let host = cluster.testbed.host(0);
    let mut kernel = Kernel::of(host);
    let before = kernel.link("flannel.1").await.mac;
    let meddled = LinkChange { mac: Some(mac("0e:66:66:66:66:66")), ..LinkChange::default() };
    kernel.alter("flannel.1", meddled).await;
    assert!(cluster.flows(REPAIR).await);
    assert_eq!(kernel.link("flannel.1").await.mac, before);
    assert_eq!(Some(mac_of(&cluster.status(0).lease.unwrap().attrs)), before);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_mac_that_cannot_be_put_back_is_published_as_the_real_one() {
    let cluster = Cluster::start(IPV4).await;
    let mut kernel = Kernel::of(cluster.testbed.host(0));
    let theirs = mac("0e:66:66:66:66:66");
    let meddled = LinkChange { mac: Some(theirs), ..LinkChange::default() };
    kernel.alter("flannel.1", meddled).await;
    // The kernel answers at once, so that no node had a turn yet.
    let powerless = Powerless::enter();
    let is_theirs =
        |status: &Status| status.lease.as_ref().is_some_and(|lease| mac_of(&lease.attrs) == theirs);
    let mut handle = cluster.handles[0].clone();
    let published = timeout(PATIENCE, handle.wait_for(is_theirs)).await;
    drop(powerless);
    published.expect("published in time").expect("a node");
    assert!(cluster.flows(PATIENCE).await);
    assert_eq!(kernel.link("flannel.1").await.mac, Some(theirs), "peers know it by now");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn somebody_who_insists_on_a_mac_gets_it_neither_kept_nor_published() {
    let cluster = Cluster::start(IPV4).await;
    let host = cluster.testbed.host(0);
    let (ours, theirs) = (Kernel::of(host).link("flannel.1").await.mac, mac("0e:66:66:66:66:66"));
    let meddler = host.meddle(Duration::from_millis(100), move |connection| {
        async move {
            let Some(link) = link_by_name(connection, "flannel.1").await? else { return Ok(()) };
            let change = LinkChange { mac: Some(theirs), ..LinkChange::default() };
            alter_link(connection, link.index, &change).await
        }
        .boxed()
    });
    let meddler = meddler.unwrap();
    let mut handle = cluster.handles[0].clone();
    let published = async {
        let is_theirs = |status: &Status| {
            status.lease.as_ref().is_some_and(|lease| mac_of(&lease.attrs) == theirs)
        };
        handle.wait_for(is_theirs).await
    };
    let mut ticks = interval(Duration::from_millis(50));
    let insisted = async {
        while meddler.deeds() < 30 {
            ticks.tick().await;
        }
    };
    tokio::select! {
        _ = published => panic!("it was published"),
        insisted = timeout(2 * PATIENCE, insisted) => insisted.expect("30 deeds"),
    }
    drop(meddler);
    assert!(cluster.flows(2 * REPAIR).await);
    assert_eq!(Kernel::of(host).link("flannel.1").await.mac, ours);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn somebody_who_keeps_altering_a_device_costs_twenty_writes_a_second() {
    let cluster = Cluster::start(IPV4).await;
    let host = cluster.testbed.host(0);
    let mut monitor = Monitor::open(host.namespace()).unwrap();
    let meddler = host.meddle(Duration::from_millis(10), |connection| {
        async move {
            let Some(link) = link_by_name(connection, "flannel.1").await? else { return Ok(()) };
            let change = LinkChange { mtu: Some(1300), ..LinkChange::default() };
            alter_link(connection, link.index, &change).await
        }
        .boxed()
    });
    let meddler = meddler.unwrap();
    let started = Instant::now();
    let mut ticks = interval(Duration::from_millis(50));
    while meddler.deeds() < 200 {
        ticks.tick().await;
        assert!(started.elapsed() < 2 * PATIENCE, "{} deeds", meddler.deeds());
    }
    drop(meddler);
    let seconds = started.elapsed().as_secs() + 1;
    let mut ours = 0;
    while let Some(notice) = monitor.next_waiting().unwrap() {
        let Notice::Added { subject: Subject::Link(link), .. } = notice else { continue };
        ours += u64::from(link.name == "flannel.1" && link.mtu == 1450);
    }
    // 20 more at first.
    assert!((20..=20 * seconds + 20).contains(&ours), "{ours} in {seconds} s");
    let mut kernel = Kernel::of(host);
    let right = async {
        while kernel.link("flannel.1").await.mtu != 1450 {
            ticks.tick().await;
        }
    };
    timeout(REPAIR, right).await.expect("put right within a second");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_deleted_device_is_back_and_peers_need_no_word() {
    let cluster = Cluster::start(DUAL).await;
    let host = cluster.testbed.host(0);
    let before = cluster.status(0).lease;
    for name in ["flannel.1", "flannel-v6.1"] {
        let mut kernel = Kernel::of(host);
        let index = kernel.link(name).await.index;
        flannel_netlink::delete_link(&mut kernel.0, index).await.unwrap();
        assert!(cluster.flows(REPAIR).await, "{name}");
    }
    assert_eq!(cluster.status(0).lease, before);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_card_that_is_pulled_and_put_in_again_costs_nothing() {
    let cluster = Cluster::start(DUAL).await;
    let host = cluster.testbed.host(0);
    let writes = cluster.status(0).writes;
    host.delete_uplink().await.unwrap();
    assert!(!cluster.flows(Duration::from_millis(300)).await);
    host.create_uplink().await.unwrap();
    assert!(cluster.flows(REPAIR).await);
    assert_eq!(cluster.status(0).writes, writes);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn restarts_lose_no_packet() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let probes = probe::streams_both_ways(world.pod(0), world.pod(1), 100).unwrap();
    for _ in 0..5 {
        nodes.restart(&world).await;
        assert_eq!(nodes.sync(0).await.writes(), 0);
        assert!(world.reaches(0, 2).await);
        timeout(REPAIR, probes.flowing()).await.expect("packets flow");
    }
    let report = probes.stop().await;
    assert_eq!(report.lost, 0, "{report}");
    // Each of four has been answered in each of five rounds.
    assert!(report.received >= 20);
}
