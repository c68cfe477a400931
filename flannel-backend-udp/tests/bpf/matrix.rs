//! All kinds of flows through each pair of engines, over veth as it is, which hands over large packets and unfinished checksums, and
//! with less and more of what network cards do.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use aya::programs::{ProgramInfo, loaded_programs};
use flannel_backend::filter::{self, Direction, Label};
use flannel_backend_udp::DropReason;
use flannel_netlink::Namespace;
use flannel_testbed::{
    OFFLOADS, eventually,
    probe::{self, Exchange, ExchangeError},
};
use socket2::{Domain, Socket, Type};

use crate::{
    support::{self, Kernel},
    world::{Cluster, run},
};

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn ebpf_to_ebpf() {
    all_flows(&[]).await;
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn ebpf_to_userspace() {
    all_flows(&["host2"]).await;
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn userspace_to_ebpf() {
    all_flows(&["host1"]).await;
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn userspace_to_userspace() {
    all_flows(&["host1", "host2", "host3", "host4"]).await;
}

/// A kind of flow to the pod of host 1.
struct Kind {
    name: &'static str,
    from: From,
    /// Whom it is sent to, if not to the pod.
    to: To,
    /// Rules of nftables on host 0 (and, where it says so, on host 1), after their hook.
    rules: &'static [(&'static str, &'static str)],
    rules_at: usize,
    device: Option<&'static str>,
}

#[derive(Clone, Copy)]
enum From {
    Host(usize),
    Pod,
}

#[derive(Clone, Copy)]
enum To {
    /// The gateway of the pods of host 1, on that host.
    Gateway,
    /// The same, from where it is given to the pod.
    GatewayOfPod,
    NodePort,
    Pod,
    Service,
}

const MARK: &str = "meta mark set mark or 0x4000";
const MASQUERADE: (&str, &str) =
    ("postrouting", "meta mark & 0x4000 == 0x4000 counter masquerade fully-random");

const KINDS: [Kind; 10] = [
    Kind { name: "pod to pod", ..PLAIN },
    Kind { name: "host to pod", from: From::Host(0), ..PLAIN },
    Kind {
        name: "host to pod by the device",
        from: From::Host(0),
        device: Some("flannel0"),
        ..PLAIN
    },
    Kind { name: "pod to host", to: To::Gateway, ..PLAIN },
    Kind {
        name: "masquerade all",
        rules: &[("postrouting", "oifname flannel0 counter masquerade fully-random")],
        ..PLAIN
    },
    Kind {
        name: "SNAT to the uplink's address",
        rules: &[("postrouting", "oifname flannel0 counter snat to UPLINK")],
        ..PLAIN
    },
    Kind {
        name: "node port",
        from: From::Host(2),
        to: To::NodePort,
        rules: &[("prerouting", "th dport 30080 MARK counter dnat to POD"), MASQUERADE],
        ..PLAIN
    },
    Kind {
        name: "service from the host",
        from: From::Host(0),
        to: To::Service,
        rules: &[("output", "FAMILY daddr SERVICE MARK counter dnat to POD"), MASQUERADE],
        ..PLAIN
    },
    Kind {
        name: "service from a pod",
        to: To::Service,
        rules: &[("prerouting", "FAMILY daddr SERVICE counter dnat to POD")],
        ..PLAIN
    },
    Kind {
        name: "DNAT behind the tunnel",
        to: To::GatewayOfPod,
        rules: &[("prerouting", "iifname flannel0 FAMILY daddr GATEWAY counter dnat to POD")],
        rules_at: 1,
        ..PLAIN
    },
];

const PLAIN: Kind =
    Kind { name: "", from: From::Pod, to: To::Pod, rules: &[], rules_at: 0, device: None };

async fn all_flows(userspace: &'static [&'static str]) {
    let cluster = Cluster::new(support::DUAL, userspace).await;
    for host in 0..3 {
        for setting in ["all.rp_filter=0", "eth0.rp_filter=0", "flannel0.rp_filter=0"] {
            cluster.run(host, &format!("sysctl -qw net.ipv4.conf.{setting}"));
        }
    }
    // The address that a Service's packets get is that of the device, and for the kernel the anycast address of the older bridge, to which
    // it reports no path MTU: docs/operating.md. Older kernels have no such setting.
    cluster.run(0, "sysctl -eqw net.ipv6.icmp.error_anycast_as_unicast=1");
    cluster.run(0, "ip route add 10.96.0.0/16 dev eth0");
    cluster.run(0, "ip route add fd00:96::/48 dev eth0");
    let mut failures = Vec::new();
    for offloads in OFFLOADS {
        for host in 0..3 {
            cluster.host(host).set_offloads(offloads).await.unwrap();
        }
        for (kind, is_ipv4) in KINDS.iter().flat_map(|kind| [(kind, true), (kind, false)]) {
            let family = if is_ipv4 { "IPv4" } else { "IPv6" };
            let exchange = prepare(&cluster, kind, is_ipv4);
            let mut failed = |why: ExchangeError| {
                failures.push(format!("{}, {family}, {offloads:?}: {why}", kind.name));
            };
            let before = cluster.stats(0).by_ebpf;
            exchange.tcp().unwrap_or_else(&mut failed);
            let carried = cluster.stats(0).by_ebpf - before;
            // Before Linux 6.11, no socket sends several datagrams at once to an uplink without checksum offload, and 6.18 gets their
            // checksums wrong if it translates their address there, without any tunnel as well.
            let by_uplink =
                matches!((kind.from, kind.to), (From::Host(_), To::NodePort | To::Service));
            if !by_uplink || offloads != "tx off" {
                exchange.udp().unwrap_or_else(&mut failed);
            }
            // Rules that translate ports leave ICMP alone.
            if !kind.rules.iter().any(|(_, rule)| rule.contains("dnat")) {
                exchange.icmp().unwrap_or_else(&mut failed);
            }
            // Programs carry what both ends have them for. Answers to the uplink's address come without the tunnel.
            let ways = if kind.name.starts_with("SNAT") { 1 } else { 2 };
            let expected = if userspace.is_empty() { ways * 3 * 700 } else { 0 };
            if carried < expected {
                failures.push(format!(
                    "{}, {family}, {offloads:?}: programs carried {carried} packets only",
                    kind.name
                ));
            }
            let rules = cluster.run(kind.rules_at, "nft list ruleset");
            if rules.contains("counter packets 0 ") {
                failures.push(format!("{}, {family}: nothing is translated: {rules}", kind.name));
            }
            cluster.run(kind.rules_at, "nft flush ruleset");
        }
    }
    let dropped = cluster.stats(0).dropped(DropReason::NoRoute);
    for group in ["224.0.0.251", "ff02::fb"] {
        send_multicast(cluster.host(0).namespace(), "flannel0", group.parse().unwrap());
    }
    eventually(async || cluster.stats(0).dropped(DropReason::NoRoute) >= dropped + 2).await;
    assert!(cluster.reaches(0, 1).await);
    assert!(failures.is_empty(), "{userspace:?}:\n{}", failures.join("\n"));
}

/// Sends a datagram to a multicast group by this device, which nobody has joined.
fn send_multicast(from: &Namespace, device: &str, group: IpAddr) {
    let socket =
        from.run(|| Socket::new(Domain::for_address((group, 0).into()), Type::DGRAM, None));
    let socket = socket.unwrap().unwrap();
    socket.bind_device(Some(device.as_bytes())).unwrap();
    socket.send_to(b"hello", &SocketAddr::new(group, 5353).into()).unwrap();
}

/// Sets up the rules, and says who sends whom what.
fn prepare(cluster: &Cluster, kind: &Kind, is_ipv4: bool) -> Exchange {
    let pod = ip(cluster.world.pod(1), is_ipv4);
    let gateway = match pod {
        IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], 1]),
        IpAddr::V6(v6) => Ipv6Addr::from((u128::from(v6) >> 64 << 64) | 1).into(),
    };
    let uplink: IpAddr = match is_ipv4 {
        true => cluster.host(0).ipv4().unwrap().into(),
        false => cluster.host(0).ipv6().unwrap().into(),
    };
    let service: IpAddr = if is_ipv4 { "10.96.0.10" } else { "fd00:96::10" }.parse().unwrap();
    let pod_namespace = cluster.world.pod(1).namespace();
    let (to, server, at): (SocketAddr, &Namespace, SocketAddr) = match kind.to {
        To::Gateway => {
            ((gateway, 7000).into(), cluster.host(1).namespace(), (gateway, 7000).into())
        }
        To::GatewayOfPod => ((gateway, 7000).into(), pod_namespace, (pod, 7000).into()),
        To::NodePort => ((uplink, 30080).into(), pod_namespace, (pod, 7000).into()),
        To::Pod => ((pod, 7000).into(), pod_namespace, (pod, 7000).into()),
        To::Service => ((service, 7000).into(), pod_namespace, (pod, 7000).into()),
    };
    let client = match kind.from {
        From::Host(host) => cluster.host(host).namespace(),
        From::Pod => cluster.world.pod(0).namespace(),
    };
    let family = if is_ipv4 { "ip" } else { "ip6" };
    for (hook, rule) in kind.rules {
        let rule = rule
            .replace("MARK", MARK)
            .replace("POD", &at.to_string())
            .replace("FAMILY", family)
            .replace("SERVICE", &service.to_string())
            .replace("GATEWAY", &gateway.to_string())
            .replace("UPLINK", &uplink.to_string());
        let priority = if *hook == "postrouting" { 100 } else { -100 };
        // Without ports nobody is DNATed.
        let guard = if rule.contains("dnat") { "meta l4proto { tcp, udp } " } else { "" };
        let text = format!(
            "table {family} t {{ chain {hook} {{ type nat hook {hook} priority {priority}; {guard}{rule}; }}; }}"
        );
        let namespace = cluster.host(kind.rules_at).namespace();
        let mut nft = std::process::Command::new("nft");
        nft.arg(&text);
        let done = namespace.run(move || nft.output()).unwrap().unwrap();
        assert!(done.status.success(), "{text}: {done:?}");
    }
    let device = kind.device.map(str::to_owned);
    Exchange { client: client.clone(), device, to, server: server.clone(), at }
}

fn ip(pod: &flannel_testbed::Pod, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => pod.ipv4().unwrap().into(),
        false => pod.ipv6().unwrap().into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_restart_or_an_upgrade_loses_nothing_and_a_removed_filter_comes_back() {
    let mut cluster = Cluster::new(support::DUAL, &[]).await;
    let pods = [cluster.world.pod(0).clone(), cluster.world.pod(1).clone()];
    let streams = probe::streams_both_ways(&pods[0], &pods[1], 1000).unwrap();
    streams.flowing().await;
    let mut numbers = filters(&cluster, None).await;
    for round in 0..6 {
        // Filters as a node of another build left them, in every second round.
        if round % 2 == 0 {
            numbers = filters(&cluster, Some(round)).await;
        }
        cluster.nodes.restart(&cluster.world).await;
        let report = cluster.nodes.sync(0).await;
        assert_eq!(report.writes(), 0, "{report:?}");
        let others = filters(&cluster, None).await;
        assert!(numbers.iter().all(|(_, number)| !others.iter().any(|(_, it)| it == number)));
        assert!(others.iter().all(|(label, _)| label.version > 6), "{others:?}");
        numbers = others;
        streams.flowing().await;
    }
    let report = streams.stop().await;
    println!("6 restarts, 3 of them upgrades: {report}");
    assert!(report.sent > 1000 && report.lost == 0, "{report}");
    for (device, direction) in [("eth0", "ingress"), ("flannel0", "egress")] {
        cluster.run(0, &format!("tc qdisc del dev {device} clsact"));
        let repaired = cluster.nodes.repair(async || {
            run(
                cluster.world.testbed().host(0).namespace(),
                &format!("tc filter show dev {device} {direction}"),
            )
            .contains("flannel-udp")
        });
        assert!(repaired.await, "{device}");
    }
}

/// The labels and programs of host 0's filters, which get this version if one is given.
async fn filters(cluster: &Cluster, version: Option<u64>) -> Vec<(Label, u32)> {
    let mut kernel = Kernel::of(cluster.host(0));
    let mut filters = Vec::new();
    for (device, direction) in [("eth0", Direction::In), ("flannel0", Direction::Out)] {
        let link = kernel.link(device).await.index;
        let there = filter::list_filters(&mut kernel.0, link, direction).await.unwrap();
        let [filter] = &there[..] else { panic!("{there:?}") };
        let number = filter.program.unwrap();
        let mut label: Label = filter.label.as_ref().unwrap().parse().unwrap();
        if let Some(version) = version {
            label.version = version;
            let is_it = |it: &ProgramInfo| it.id() == number;
            let program = loaded_programs().flatten().find(is_it).unwrap().fd().unwrap();
            let descriptor = program.as_fd().as_raw_fd();
            let text = label.to_string();
            let request = filter::replace(link, direction, filter.handle, descriptor, &text);
            kernel.0.apply_one(request).await.unwrap();
        }
        filters.push((label, number));
    }
    filters
}
