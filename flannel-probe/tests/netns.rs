//! Probers on hosts of a testbed, over the real kernel.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use flannel_netlink::state::IpFamily;
use flannel_probe::{
    Checksums, Datagram, End, Findings, Kind, Options, PathFinding, PathMtu, Prober, ProberHandle,
    Target, Targets,
};
use flannel_testbed::{Host, Testbed, soon};
use tokio::{task::JoinSet, time::timeout};

/// Two hosts that know each other, the first with a prober.
struct World {
    testbed: Testbed,
    handle: ProberHandle,
    options: Options,
    probers: JoinSet<()>,
}

impl World {
    async fn new() -> Self {
        Self::with(options()).await
    }

    async fn with(options: Options) -> Self {
        let testbed = Testbed::new(2).await.unwrap();
        let mut probers = JoinSet::new();
        let handle = start(&testbed, 0, options.clone(), &mut probers);
        Self { testbed, handle, options, probers }
    }

    /// The second host has a prober too from now on.
    fn complete(&mut self) {
        start(&self.testbed, 1, self.options.clone(), &mut self.probers);
    }

    fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    async fn find(&mut self, condition: impl Fn(&Findings) -> bool) -> Arc<Findings> {
        let found = async {
            loop {
                let findings = self.handle.findings();
                if condition(&findings) {
                    return findings;
                }
                self.handle.changed().await.expect("the prober runs");
            }
        };
        soon(found).await
    }

    async fn find_both(&mut self, condition: impl Fn(&PathFinding) -> bool) -> Arc<Findings> {
        let both = |it: &Findings| it.paths.len() == 2 && it.paths.values().all(&condition);
        self.find(both).await
    }
}

fn options() -> Options {
    let timeout = Duration::from_millis(200);
    Options {
        timeout,
        interval: Duration::from_millis(500),
        per_second: 1000,
        ..Options::default()
    }
}

/// A prober on host `n` that knows the other one, by IPv4 and IPv6.
fn start(testbed: &Testbed, n: usize, options: Options, probers: &mut JoinSet<()>) -> ProberHandle {
    let (own, other) = (testbed.host(n), testbed.host(1 - n));
    let (prober, handle) = Prober::new(own.namespace(), options);
    let ips = |host: &Host| [host.ipv4().map(IpAddr::from), host.ipv6().map(IpAddr::from)];
    let end = |local| End { local, overlay: None, needed: 1500 };
    let peer = format!("10.244.{}.0-24&fd00:{}::-64", 2 - n, 2 - n).parse().unwrap();
    let target = |address| Target { peer, address, overlay: None };
    let ends = ips(own).into_iter().flatten().map(end).collect();
    let peers = ips(other).into_iter().flatten().map(target).collect();
    handle.set_targets(Targets::new(ends, peers));
    probers.spawn(async { match prober.run().await {} });
    handle
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_a_link_on_the_way_takes_is_found_exactly() {
    let mut world = World::with(Options::default()).await;
    world.complete();
    let findings = world.find_both(|it| it.mtu == PathMtu::Enough).await;
    let intact =
        |it: &PathFinding| (it.underlay, it.overlay) == (Checksums::Intact, Checksums::Unknown);
    assert!(findings.paths.values().all(intact), "{findings:?}");
    for mtu in [1400, 1499, 1333] {
        world.host(1).set_path_mtu(mtu).await.unwrap();
        world.find_both(|it| it.mtu == PathMtu::Less(mtu)).await;
    }
    world.host(1).set_path_mtu(1500).await.unwrap();
    world.find_both(|it| it.mtu == PathMtu::Enough).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_peer_without_a_prober_does_not_answer_until_it_has_one() {
    let mut world = World::new().await;
    let findings = world.find_both(|it| it.mtu == PathMtu::NoAnswer).await;
    assert!(findings.limits().is_empty() && findings.faults.is_empty(), "{findings:?}");
    let unknown = |it: &PathFinding| (it.underlay, it.overlay) == Default::default();
    assert!(findings.paths.values().all(unknown), "{findings:?}");
    world.complete();
    world.find_both(|it| it.mtu == PathMtu::Enough).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn strangers_and_garbage_get_nothing() {
    let testbed = Testbed::new(3).await.unwrap();
    let mut probers = JoinSet::new();
    let handle = start(&testbed, 0, options(), &mut probers);
    let to = SocketAddr::new(testbed.host(0).ip(), options().port);
    let probe = Datagram::new(Kind::Request, 52, 7).header();
    let socket = |n: usize| {
        let host = testbed.host(n);
        let bind = || {
            let socket = UdpSocket::bind((host.ip(), 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        tokio::net::UdpSocket::from_std(host.namespace().run(bind).unwrap()).unwrap()
    };
    let (known, stranger) = (socket(1), socket(2));
    for _ in 0..10 {
        stranger.send_to(&probe, to).await.unwrap();
        for garbage in [&b"fl-probe"[..], &[], &[0; 24], &probe[..23], &[0xff; 1400]] {
            known.send_to(garbage, to).await.unwrap();
        }
        // An answer that nobody waits for.
        known.send_to(&Datagram::new(Kind::Reply, 52, 7).header(), to).await.unwrap();
    }
    // What came before it was handled before it.
    let mut answer = [0; 100];
    let answered = async {
        loop {
            known.send_to(&probe, to).await.unwrap();
            let wait = timeout(Duration::from_millis(50), known.recv_from(&mut answer));
            if let Ok(received) = wait.await {
                return received.unwrap();
            }
        }
    };
    let (length, from) = soon(answered).await;
    assert_eq!((length, from), (probe.len(), to));
    let read = Datagram::parse(&answer[..24], length, 28).expect("an answer");
    assert_eq!((read.kind, read.nonce), (Kind::Reply, 7));
    assert!(stranger.try_recv_from(&mut [0; 100]).is_err(), "a stranger got an answer");
    let mut handle = handle;
    let counted = async {
        while handle.findings().traffic.ignored < 70 {
            handle.changed().await.unwrap();
        }
    };
    soon(counted).await;
    let mtus = handle.findings().paths.values().map(|it| it.mtu).collect::<Vec<_>>();
    assert!(!mtus.contains(&PathMtu::Enough), "{mtus:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_address_that_is_not_there_yet_is_named_and_used_when_it_comes() {
    let mut world = World::new().await;
    world.complete();
    world.find_both(|it| it.mtu == PathMtu::Enough).await;
    let late: IpAddr = [198, 51, 100, 1].into();
    let end = End { local: late, overlay: None, needed: 1500 };
    world.handle.set_targets(Targets::new(vec![end], Vec::new()));
    let findings = world.find(|it| !it.faults.is_empty()).await;
    let fault = &findings.faults[0];
    assert!(fault.starts_with("cannot use UDP port 8286 of 198.51.100.1: "), "{fault}");
    assert_eq!(findings.faults.len(), 1);
    assert_eq!(IpFamily::of(&late), IpFamily::V4);
    let mut host = world.host(0).connect().unwrap();
    let link = flannel_netlink::link_by_name(&mut host, "eth0").await.unwrap().unwrap();
    let address = format!("{late}/32").parse().unwrap();
    let address = flannel_netlink::state::Object::from(flannel_netlink::state::Address::new(
        link.index, address,
    ));
    host.apply_one(address.replace()).await.unwrap();
    world.find(|it| it.faults.is_empty()).await;
}
