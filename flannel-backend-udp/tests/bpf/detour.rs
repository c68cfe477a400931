//! TCP takes the detour through the kernel's own unpacking where it is open, and gets there where it is not.

use std::{net::UdpSocket, time::Duration};

use flannel_testbed::probe::tcp_throughput;

use crate::world::{Cluster, packet, received};

impl Cluster {
    /// Packets that have come by the detour of a host.
    fn detoured(&self, host: usize) -> u64 {
        let text = self.run(host, "ip -s -j link show flannel-in8285");
        let (_, rest) = text.split_once(r#""rx":{"#).unwrap();
        let (_, rest) = rest.split_once(r#""packets":"#).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    }

    fn shows(&self, host: usize, command: &str) -> bool {
        self.host(host)
            .namespace()
            .run(|| {
                let mut words = command.split(' ');
                let mut shown = std::process::Command::new(words.next().unwrap());
                shown.args(words).output().unwrap().status.success()
            })
            .unwrap()
    }

    /// Whether TCP gets from one pod to another.
    async fn talks(&self, from: usize, to: usize) -> bool {
        let went =
            tcp_throughput(self.world_pod(from), self.world_pod(to), Duration::from_millis(100));
        let went = tokio::time::timeout(Duration::from_secs(1), went).await;
        matches!(went, Ok(Ok(went)) if went.bytes > 100_000)
    }

    fn world_pod(&self, host: usize) -> &flannel_testbed::Pod {
        self.world.pod(host)
    }
}

const DEVICE: &str = "ip link show flannel-in8285";

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn tcp_takes_it_and_nothing_else_does() {
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
    let cluster = Cluster::of(config, &[]).await;
    let probed = cluster.detoured(1);
    assert!(probed >= 1, "the way was tried");
    assert!(cluster.reaches(0, 1).await);
    assert_eq!(cluster.detoured(1), probed);
    let before = cluster.stats(1);
    assert!(cluster.talks(0, 1).await);
    let tcp = cluster.detoured(1) - probed;
    assert!(tcp > 10, "{tcp}");
    let after = cluster.stats(1);
    assert_eq!(after.by_ebpf - before.by_ebpf, {
        let packets =
            |stats: &flannel_backend_udp::Stats| stats.sent.packets + stats.received.packets;
        packets(&after) - packets(&before)
    });

    // IPv6 inside, which has IPv6 outside.
    let (from, to) = (cluster.world.pod(0), cluster.world.pod(1));
    let before = cluster.detoured(1);
    let ip = to.ipv6().unwrap();
    let listener = to.namespace().run(|| std::net::TcpListener::bind((ip, 0)).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sender =
        from.namespace().run(|| std::net::TcpStream::connect(address).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let data = vec![7; 1 << 20];
    let sent = data.clone();
    let sending = std::thread::spawn(move || std::io::Write::write_all(&mut sender, &sent));
    let mut got = Vec::new();
    std::io::Read::read_to_end(&mut receiver, &mut got).unwrap();
    sending.join().unwrap().unwrap();
    assert!(got == data, "{} bytes", got.len());
    assert!(cluster.detoured(1) - before > 10);
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn what_others_do_to_it_is_put_right_within_a_second() {
    let mut cluster = Cluster::start("", &[]).await;
    for damage in [
        "tc filter del dev flannel-in8285 ingress",
        "tc qdisc del dev flannel-in8285 clsact",
        "ip link set flannel-in8285 down",
        "ip link del flannel-in8285",
    ] {
        cluster.run(0, damage);
        let (nodes, world) = (&mut cluster.nodes, &cluster.world);
        let host = world.testbed().host(0).namespace();
        let done = async || {
            let Some(filters) = filters(host) else { return false };
            filters.contains("flannel-udp ") && crate::world::run(host, DEVICE).contains(",UP")
        };
        assert!(nodes.repair(done).await, "{damage}");
        assert!(cluster.talks(1, 0).await, "{damage}");
        assert!(cluster.detoured(0) > 10, "{damage}");
    }
}

fn filters(host: &flannel_netlink::Namespace) -> Option<String> {
    let mut tc = std::process::Command::new("tc");
    tc.args(["filter", "show", "dev", "flannel-in8285", "ingress"]);
    let shown = host.run(|| tc.output().unwrap()).unwrap();
    shown.status.success().then(|| String::from_utf8_lossy(&shown.stdout).into_owned())
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn where_it_is_closed_tcp_goes_without() {
    for closing in [
        "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1",
        "ip link set lo down",
        "nft add table ip6 no; add chain ip6 no in { type filter hook input priority 0; policy drop; }",
    ] {
        let mut cluster = Cluster::start("", &[]).await;
        assert!(cluster.shows(0, DEVICE));
        cluster.run(0, closing);
        // Of devices and addresses the kernel tells. Of a firewall nobody does, and where nothing comes nobody looks.
        let (peer, _receiver, address) = cluster.sockets(1, 0);
        let (nodes, world) = (&mut cluster.nodes, &cluster.world);
        let host = world.testbed().host(0).namespace();
        let is_gone = async || {
            if closing.starts_with("nft") {
                peer.send_to(b"hello", address).unwrap();
            }
            filters(host).is_none()
        };
        assert!(nodes.repair(is_gone).await, "{closing}");
        assert!(cluster.talks(1, 0).await, "{closing}");
        assert!(!cluster.shows(0, DEVICE), "{closing}");
        // What is refused is not tried again at once.
        cluster.nodes.sync(0).await;
        assert!(!cluster.shows(0, DEVICE), "{closing}");
    }
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn nobody_else_gets_in_by_it() {
    let cluster = Cluster::start("", &[]).await;
    let (_, receiver, address) = cluster.sockets(1, 0);
    let before = cluster.detoured(0);
    // A process of the host that does not know the address: a packet for the pod in the dress of VXLAN.
    let host = cluster.host(0).namespace();
    let socket = host.run(|| UdpSocket::bind("[::1]:0").unwrap()).unwrap();
    let mut forged = vec![8, 0, 0, 0, 0, 0x20, 0x5d, 0];
    forged.extend([0xff; 6]);
    forged.extend([2, 0, 0, 0, 0, 0, 8, 0]);
    forged.extend(packet("10.244.2.2".parse().unwrap(), address, 64, b"hello"));
    socket.send_to(&forged, "[::1]:8286").unwrap();
    // It came to the device, and no further.
    assert_eq!(received(&receiver), None);
    assert_eq!(cluster.detoured(0), before + 1);
}
