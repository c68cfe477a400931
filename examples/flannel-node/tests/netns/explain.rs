//! `explain` on hosts where one link after the other is broken.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, net::IpAddr, process::Command, time::Duration};

use flannel_netlink::{
    Connection, LinkChange, alter_link, delete_link, link_by_name, list_addresses, list_forwarding,
    list_neighbours, list_nexthops, list_routes,
    state::{
        Address, AddressFilter, ForwardingEntry, IpFamily, MacAddress, Neighbour, Nexthop, Route,
    },
};
use flannel_testbed::{Pod, Process, eventually};

use super::support::{Cluster, HOST_GW, VXLAN, program};

/// Two hosts whose nodes have brought up everything and are gone since, so that nobody repairs what a test breaks.
struct Broken {
    cluster: Cluster,
    pods: Vec<Pod>,
    host: Connection,
}

/// What the program said.
#[derive(Debug)]
struct Said {
    code: i32,
    link: Option<String>,
    text: String,
}

impl Broken {
    async fn new(network: &'static str) -> Self {
        let (whole, nodes) = Self::whole(network).await;
        for mut node in nodes {
            node.kill().unwrap();
            node.wait().await.unwrap();
        }
        whole
    }

    /// The same while the nodes run.
    async fn whole(network: &'static str) -> (Self, Vec<Process>) {
        let cluster = Cluster::new(2, network).await;
        let (nodes, pods) = cluster.start_all().await;
        let host = cluster.host(0).connect().unwrap();
        (Self { cluster, pods, host }, nodes)
    }

    fn ips(&self) -> (IpAddr, IpAddr) {
        (self.pods[0].ip(), self.pods[1].ip())
    }

    async fn explain(&self) -> Said {
        let (source, destination) = self.ips();
        self.explain_on(0, source, destination).await
    }

    async fn explain_on(&self, host: usize, source: IpAddr, destination: IpAddr) -> Said {
        let mut command = Command::new(program());
        command.arg("explain").arg(source.to_string()).arg(destination.to_string());
        command.args(["--json", "--store", &self.cluster.store()]);
        command.arg("--subnet-file").arg(self.cluster.subnet_file(host));
        let mut process = self.cluster.host(host).spawn(command).unwrap();
        said(&mut process).await
    }

    /// What is broken first from now on is `link`, and the sentence about it has `words`.
    async fn is_broken_at(&self, link: &str, words: &str) {
        let said = self.explain().await;
        assert_eq!((said.code, said.link.as_deref()), (1, Some(link)), "{said:?}");
        assert!(said.text.contains(words), "{said:?} has no {words:?}");
    }

    async fn is_whole(&self) {
        let said = self.explain().await;
        assert_eq!((said.code, said.link.as_deref()), (0, None), "{said:?}");
    }

    async fn apply(&mut self, requests: &[flannel_netlink::Request]) {
        for outcome in self.host.apply(requests).await {
            outcome.unwrap();
        }
    }

    async fn device(&mut self, name: &str) -> u32 {
        link_by_name(&mut self.host, name).await.unwrap().unwrap().index
    }

    async fn alter(&mut self, name: &str, change: LinkChange) {
        let index = self.device(name).await;
        alter_link(&mut self.host, index, &change).await.unwrap();
    }

    fn set(&self, setting: &str, value: &str) {
        let path = format!("/proc/sys/{setting}");
        self.cluster.host(0).namespace().run(|| fs::write(path, value)).unwrap().unwrap();
    }

    /// Our routes to the peer.
    async fn route(&mut self) -> Route {
        let block = self.cluster.subnet(1).ipv4().unwrap().into();
        let routes = list_routes(&mut self.host, Route::MAIN, IpFamily::V4).await.unwrap();
        routes.into_iter().find(|route| route.destination == block).unwrap()
    }
}

async fn said(process: &mut Process) -> Said {
    let code = process.wait().await.unwrap().code().unwrap();
    let text = process.output().join("\n");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    Said { code, link: json["broken"]["link"].as_str().map(String::from), text }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_works_is_whole_from_both_ends_and_in_both_directions() {
    for network in [VXLAN, HOST_GW] {
        let broken = Broken::new(network).await;
        let (a, b) = broken.ips();
        for host in 0..2 {
            for (source, destination) in [(a, b), (b, a)] {
                let said = broken.explain_on(host, source, destination).await;
                assert_eq!((said.code, said.link.as_deref()), (0, None), "{said:?}");
            }
        }
        let said = broken.explain_on(0, a, a).await;
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_that_runs_is_asked_and_puts_right_what_was_broken() {
    let (mut whole, _nodes) = Broken::whole(VXLAN).await;
    whole.is_whole().await;
    let device = whole.device("flannel.1").await;
    delete_link(&mut whole.host, device).await.unwrap();
    eventually(async || whole.explain().await.code == 0).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wrong_in_the_store_is_named() {
    let broken = Broken::new(VXLAN).await;
    let (a, _) = broken.ips();
    let outside: IpAddr = [10, 9, 0, 1].into();
    let said = broken.explain_on(0, a, outside).await;
    assert_eq!((said.code, said.link.as_deref()), (1, Some("network")), "{said:?}");
    // No node gets the first subnet of a network.
    let said = broken.explain_on(0, a, [10, 244, 0, 7].into()).await;
    assert_eq!(said.link.as_deref(), Some("peer's lease"), "{said:?}");

    let leases = broken.cluster.folder.path().join("store/subnets");
    let key = |n: usize| {
        let block = broken.cluster.subnet(n).ipv4().unwrap();
        leases.join(format!("{}-{}", block.network(), block.prefix()))
    };
    for (n, link, words) in
        [(1, "peer's lease", "no lease has"), (0, "own lease", "no lease has this host's subnet")]
    {
        let kept = leases.with_file_name("kept");
        fs::rename(key(n), &kept).unwrap();
        broken.is_broken_at(link, words).await;
        fs::rename(&kept, key(n)).unwrap();
    }
    let file = broken.cluster.subnet_file(0);
    let kept = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    broken.is_broken_at("own subnet", "names no subnet").await;
    fs::write(&file, kept).unwrap();
    broken.is_whole().await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wrong_with_the_tunnel_is_named() {
    let mut broken = Broken::new(VXLAN).await;
    let device = broken.device("flannel.1").await;
    let peer = broken.cluster.subnet(1).ipv4().unwrap().network();

    let neighbours = list_neighbours(&mut broken.host, device).await.unwrap();
    let neighbour = *neighbours.iter().find(|it| it.address == peer).unwrap();
    broken.apply(&[neighbour.delete()]).await;
    broken.is_broken_at("neighbour", "has no Ethernet address for").await;
    let wrong = Neighbour { mac: Some(MacAddress::new([2; 6])), ..neighbour };
    broken.apply(&[wrong.replace()]).await;
    broken.is_broken_at("neighbour", "02:02:02:02:02:02, and the peer's is").await;
    broken.apply(&[neighbour.replace()]).await;

    let entries = list_forwarding(&mut broken.host, device).await.unwrap();
    let entry = *entries.iter().find(|it| Some(it.mac) == neighbour.mac).unwrap();
    broken.apply(&[entry.delete()]).await;
    broken.is_broken_at("forwarding entry", "does not know where to send").await;
    let wrong = ForwardingEntry { remote: Some([192, 0, 2, 99].into()), ..entry };
    broken.apply(&[wrong.replace()]).await;
    broken.is_broken_at("forwarding entry", "to 192.0.2.99, and the peer is at").await;
    broken.apply(&[entry.delete(), entry.replace()]).await;

    let route = broken.route().await;
    broken.apply(&[route.delete()]).await;
    broken.is_broken_at("route", "there is no route to").await;
    broken.is_broken_at("route", "no flannel-node runs here: start it").await;
    broken.apply(&[route.blackhole().replace()]).await;
    broken.is_broken_at("route", "drops packets").await;
    broken.apply(&[route.blackhole().delete(), route.replace()]).await;
    let pod: IpAddr = broken.ips().1;
    let uplink = broken.device("eth0").await;
    let specific = Route::new(pod.into(), 4).direct(uplink);
    broken.apply(&[specific.replace()]).await;
    broken.is_broken_at("route", "straight to eth0, past the route to").await;
    broken.apply(&[specific.delete()]).await;

    let filter = AddressFilter { link: Some(device) };
    let address: Address = list_addresses(&mut broken.host, filter).await.unwrap()[0];
    broken.apply(&[address.delete()]).await;
    broken.is_broken_at("device", "does not have the address").await;
    // With the last address of a device the kernel takes its neighbours and routes away.
    broken.apply(&[address.replace(), neighbour.replace(), route.replace()]).await;
    broken.is_whole().await;

    broken.alter("flannel.1", LinkChange { mtu: Some(1400), ..LinkChange::default() }).await;
    broken.is_broken_at("device", "takes packets of 1400 bytes, expected 1450").await;
    broken.alter("flannel.1", LinkChange { mtu: Some(1450), ..LinkChange::default() }).await;
    let mac = Some(MacAddress::new([0x0e, 0x66, 0x66, 0x66, 0x66, 0x66]));
    broken.alter("flannel.1", LinkChange { mac, ..LinkChange::default() }).await;
    broken.is_broken_at("device", "0e:66:66:66:66:66, and our lease tells peers").await;
    broken.alter("flannel.1", LinkChange { up: Some(false), ..LinkChange::default() }).await;
    broken.is_broken_at("device", "flannel.1 is down").await;
    delete_link(&mut broken.host, device).await.unwrap();
    broken.is_broken_at("device", "there is no device flannel.1").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wrong_with_a_next_hop_is_named() {
    let mut broken = Broken::new(HOST_GW).await;
    let route = broken.route().await;
    let nexthops = list_nexthops(&mut broken.host).await.unwrap();
    let peer = broken.cluster.host(1).ip();
    match nexthops.iter().find(|it| it.gateway == peer) {
        Some(nexthop) => {
            let wrong = Nexthop { gateway: [192, 0, 2, 99].into(), ..*nexthop };
            broken.apply(&[wrong.replace()]).await;
            broken.is_broken_at("route", "leads through 192.0.2.99 on eth0, expected").await;
            broken.apply(&[nexthop.replace()]).await;
        }
        None => panic!("the route {route} uses no next hop object: {nexthops:?}"),
    }
    broken.is_whole().await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wrong_with_this_host_is_named() {
    let mut broken = Broken::new(VXLAN).await;
    for (setting, name) in [
        ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/flannel.1/forwarding", "net.ipv4.conf.flannel/1.forwarding"),
    ] {
        broken.set(setting, "0");
        broken.is_broken_at("settings", &format!("{name} is 0")).await;
        broken.set("net/ipv4/ip_forward", "1");
        broken.set(setting, "1");
    }
    // Encapsulated packets end on the uplink.
    broken.set("net/ipv4/conf/eth0/forwarding", "0");
    broken.is_whole().await;
    broken.set("net/ipv4/conf/eth0/forwarding", "1");
    broken.alter("cni0", LinkChange { up: Some(false), ..LinkChange::default() }).await;
    broken.is_broken_at("pod", "to the pod").await;
    broken.alter("cni0", LinkChange { up: Some(true), ..LinkChange::default() }).await;
    let host = &mut broken.host;
    eventually(async || link_by_name(host, "cni0").await.unwrap().unwrap().running).await;
    broken.cluster.host(0).unplug().await.unwrap();
    broken
        .is_broken_at("underlay", "eth0, which leads to the peer at 192.0.2.2, has no carrier")
        .await;
    broken.cluster.host(0).plug().await.unwrap();
    broken.cluster.host(0).link_down().await.unwrap();
    let said = broken.explain().await;
    assert!(matches!(said.link.as_deref(), Some("own lease" | "underlay")), "{said:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn rules_that_are_in_the_way_are_named_whoever_wrote_them() {
    for network in [VXLAN, HOST_GW] {
        let broken = Broken::new(network).await;
        let run = async |line: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            let mut process = broken.cluster.host(0).spawn(command).unwrap();
            assert!(process.wait().await.unwrap().success(), "{line}: {:?}", process.output());
        };
        run("iptables -P FORWARD DROP").await;
        broken.is_whole().await;
        run("iptables -F FLANNEL-FWD").await;
        let policy = "chain FORWARD of table ip filter drops these packets by its policy";
        broken.is_broken_at("firewall", policy).await;
        broken.is_broken_at("firewall", "accept packets from and to 10.244.0.0/16").await;
        run("iptables -P FORWARD ACCEPT; iptables-legacy -P FORWARD DROP").await;
        broken.is_broken_at("firewall", "table ip filter of legacy iptables drops").await;
        run("iptables-legacy -P FORWARD ACCEPT").await;
        run("nft 'add table inet x; add chain inet x f { type filter hook forward priority 5; }; \
             add rule inet x f iifname cni0 drop'")
        .await;
        broken
            .is_broken_at("firewall", "chain f of table inet x drops these packets by rule 1")
            .await;
        run("nft delete table inet x").await;
        broken.is_whole().await;
        run("iptables -t nat -A POSTROUTING -s 10.244.0.0/16 ! -o cni0 -j MASQUERADE").await;
        broken.is_broken_at("firewall", "masquerades these packets by rule 1").await;
        broken
            .is_broken_at("firewall", "leave packets from 10.244.0.0/16 to 10.244.0.0/16 out")
            .await;
        run("iptables -t nat -F POSTROUTING").await;
        if network == HOST_GW {
            continue;
        }
        for chain in ["INPUT", "OUTPUT"] {
            run(&format!("iptables -I {chain} -p udp --dport 8472 -j DROP")).await;
            let words = format!("UDP port 8472: chain {chain} of table ip filter drops");
            broken.is_broken_at("firewall", &words).await;
            run(&format!("iptables -F {chain}")).await;
        }
        run("nft 'add table ip x; add set ip x nodes { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }; \
             add chain ip x i { type filter hook input priority 0; }; \
             add rule ip x i udp dport 8472 ip saddr != @nodes drop'")
        .await;
        broken.is_whole().await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_wrong_on_the_other_side_is_told_from_here() {
    for network in [VXLAN, HOST_GW] {
        let broken = Broken::new(network).await;
        let (a, b) = broken.ips();
        let block = broken.cluster.subnet(1).ipv4().unwrap();
        let absent = IpAddr::from(block.nth(200).unwrap());
        let said = broken.explain_on(0, a, absent).await;
        assert_eq!((said.code, said.link.as_deref()), (1, Some("far pod")), "{said:?}");

        let peer = broken.cluster.host(1);
        peer.set_mtu(1400).await.unwrap();
        broken
            .is_broken_at("path MTU", "packets of 1500 bytes to the peer at 192.0.2.2 get lost")
            .await;
        peer.set_mtu(1500).await.unwrap();
        broken.is_whole().await;
        peer.delete_route(broken.cluster.subnet(0)).await.unwrap();
        broken.is_broken_at("peer", "answers this host itself, but not through the network").await;
        if network == VXLAN {
            let mut there = peer.connect().unwrap();
            let device = link_by_name(&mut there, "flannel.1").await.unwrap().unwrap();
            delete_link(&mut there, device.index).await.unwrap();
            broken.is_broken_at("peer", "nothing there takes the packets of flannel.1").await;
        }
        broken.cluster.testbed.separate([peer]).await.unwrap();
        broken.is_broken_at("underlay", "192.0.2.2").await;
        let said = broken.explain_on(1, b, b).await;
        assert_eq!(said.code, 0, "its own pods still reach each other: {said:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn people_read_one_line_a_link_and_mistakes_are_told() {
    let broken = Broken::new(VXLAN).await;
    let (a, b) = broken.ips();
    let mut command = Command::new(program());
    command.args(["explain", &a.to_string(), &b.to_string(), "--store", &broken.cluster.store()]);
    command.arg("--subnet-file").arg(broken.cluster.subnet_file(0));
    let mut process = broken.cluster.host(0).spawn(command).unwrap();
    assert!(process.wait().await.unwrap().success());
    let text = process.output();
    let (last, links) = text.split_last().unwrap();
    assert!(links.iter().all(|line| line.starts_with("ok      ")), "{text:?}");
    assert_eq!(*last, format!("{a} and {b} reach each other, as far as this host can tell"));

    let mut command = Command::new(program());
    command.args(["explain", "10.244.1.2", "fd00::1", "--store", &broken.cluster.store()]);
    let mut process = broken.cluster.host(0).spawn(command).unwrap();
    process
        .line(Duration::from_secs(5), |line| line.contains("two address families"))
        .await
        .unwrap();
    assert_eq!(process.wait().await.unwrap().code(), Some(2));
}
