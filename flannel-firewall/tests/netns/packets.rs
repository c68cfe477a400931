//! What happens to packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flannel_firewall::{Family, Firewall, FirewallOptions};

use crate::world::{Mode, World, receive, scope, socket};

/// Every kind of traffic has the source that it should have, in both families.
async fn every_rule_has_its_effect(mode: Mode) {
    let world = World::new(mode).await;
    let _firewall = world.start().await;
    let (pod, peer, outside) = (&world.pod, &world.peer_pod, world.outside());
    for ((pod_ip, peer_ip), outside_ip) in
        pod.endpoint().ips().zip(peer.endpoint().ips()).zip(outside.endpoint().ips())
    {
        let node = world.node_ip(pod_ip);
        let pod = (pod.namespace(), pod_ip);
        let peer = (peer.namespace(), peer_ip);
        let outside = (outside.namespace(), outside_ip);
        let seen = |from, to| world.source_seen(from, to);
        let case = format!("{mode:?} {pod_ip}");
        assert_eq!(seen(pod, peer).await, Some(pod_ip), "{case}: to a peer's pod");
        assert_eq!(seen(peer, pod).await, Some(peer_ip), "{case}: from a peer's pod");
        assert_eq!(seen(outside, pod).await, Some(outside_ip), "{case}: from outside to us");
        assert_eq!(seen(pod, outside).await, Some(node), "{case}: to the outside");
        assert_eq!(seen(outside, peer).await, Some(node), "{case}: from outside to a peer's pod");
    }
    // What kube-proxy marked is its own business, also with other bits in the mark.
    world
        .run("nft 'add table inet test; add chain inet test early { type filter hook prerouting priority mangle; }; \
              add rule inet test early meta mark set 0xc000'")
        .await;
    for (pod_ip, outside_ip) in pod.endpoint().ips().zip(outside.endpoint().ips()) {
        // The way back is not needed: one packet tells.
        let seen =
            world.source_seen((pod.namespace(), pod_ip), (outside.namespace(), outside_ip)).await;
        assert_eq!(seen, Some(pod_ip), "{mode:?} {pod_ip}: marked");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_rule_of_nftables_has_its_effect() {
    every_rule_has_its_effect(Mode::Nftables).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_rule_of_iptables_has_its_effect() {
    every_rule_has_its_effect(Mode::IptablesNft).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_rule_of_legacy_iptables_has_its_effect() {
    every_rule_has_its_effect(Mode::IptablesLegacy).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_goes_to_a_group_keeps_its_source() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let _firewall = world.start().await;
        let group = Ipv4Addr::new(239, 1, 2, 3);
        let receiver = socket(world.outside().namespace(), IpAddr::V4(Ipv4Addr::UNSPECIFIED)).await;
        receiver.join_multicast_v4(group, world.outside().ipv4().unwrap()).unwrap();
        let gateway: IpAddr = "10.244.1.1".parse().unwrap();
        let sender = socket(world.node().namespace(), gateway).await;
        let uplink = world.node().ipv4().unwrap();
        socket2::SockRef::from(&sender).set_multicast_if_v4(&uplink).unwrap();
        let target = SocketAddr::new(group.into(), receiver.local_addr().unwrap().port());
        assert_eq!(receive(&receiver, &sender, target).await, Some(gateway), "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn packets_to_some_keep_their_source_if_that_is_asked_for() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let outside = world.outside();
        let keep_source = outside.endpoint().ips().map(Into::into).collect();
        let options = FirewallOptions { keep_source, ..world.options() };
        let namespace = world.node().namespace();
        let mut firewall = Firewall::open(namespace, options).await.unwrap();
        assert_eq!(firewall.sync(&scope()).await.faults, []);
        let other = world.testbed.host(1);
        for ((pod_ip, to), other_ip) in
            world.pod.endpoint().ips().zip(outside.endpoint().ips()).zip(other.endpoint().ips())
        {
            let pod = (world.pod.namespace(), pod_ip);
            let seen = world.source_seen(pod, (outside.namespace(), to)).await;
            assert_eq!(seen, Some(pod_ip), "{mode:?}: to {to}");
            let seen = world.source_seen(pod, (other.namespace(), other_ip)).await;
            assert_eq!(seen, Some(world.node_ip(pod_ip)), "{mode:?}: to {other_ip}");
        }
        assert_eq!(firewall.sync(&scope()).await.writes(), 0, "{mode:?}");
        // Whoever starts without the option finds a rule too many.
        drop(firewall);
        let mut plain = world.open().await;
        let report = plain.sync(&scope()).await;
        assert!(report.faults.is_empty() && report.writes() > 0, "{mode:?}: {report:?}");
        assert_eq!(plain.sync(&scope()).await.writes(), 0, "{mode:?}");
    }
}

/// Whatever the routes say.
#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn packets_between_pods_of_two_nodes_go_by_the_tunnel_or_not_at_all() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let (pod, peer, outside) = (&world.pod, &world.peer_pod, world.outside());
        let uplink = world.run("ip -o route get 192.0.2.2 | sed 's/.* dev //; s/ .*//'").await;
        let pattern = format!("{}+", &uplink.trim()[..2]);
        for (tunnel, passes) in
            [("flannel-wg", false), ("flannel-wg+", false), (uplink.trim(), true), (&pattern, true)]
        {
            let tunnels = Family::ALL.map(|family| (family, tunnel.to_owned())).into();
            let options = FirewallOptions { tunnels, ..world.options() };
            let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
            let report = firewall.sync(&scope()).await;
            assert!(report.is_exact() && report.notes.is_empty(), "{mode:?}: {report:?}");
            assert_eq!(firewall.sync(&scope()).await.writes(), 0, "{mode:?}");
            for ((pod_ip, peer_ip), outside_ip) in
                pod.endpoint().ips().zip(peer.endpoint().ips()).zip(outside.endpoint().ips())
            {
                let case = format!("{mode:?} {tunnel} {pod_ip}");
                let node = Some(world.node_ip(pod_ip));
                let pod = (pod.namespace(), pod_ip);
                let peer = (peer.namespace(), peer_ip);
                let outside = (outside.namespace(), outside_ip);
                let seen = |from, to| world.source_seen(from, to);
                assert_eq!(seen(pod, peer).await, passes.then_some(pod_ip), "{case}: to a peer");
                assert_eq!(seen(peer, pod).await, passes.then_some(peer_ip), "{case}: from one");
                assert_eq!(seen(outside, peer).await, node.filter(|_| passes), "{case}: through");
                assert_eq!(seen(outside, pod).await, Some(outside_ip), "{case}: from outside");
                assert_eq!(seen(pod, outside).await, node, "{case}: to the outside");
            }
            firewall.teardown().await.unwrap();
            assert!(!world.ours().await.contains(tunnel), "{mode:?}");
        }
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forwarding_works_where_the_policy_drops() {
    for mode in [Mode::IptablesLegacy, Mode::IptablesNft] {
        let world = World::new(mode).await;
        world.run("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").await;
        let (pod, peer) = (&world.pod, &world.peer_pod);
        for to in peer.endpoint().ips() {
            assert!(pod.ping(to).await.is_err(), "{mode:?}: the policy drops");
        }
        let _firewall = world.start().await;
        for to in peer.endpoint().ips().chain(world.outside().endpoint().ips()) {
            assert!(pod.ping(to).await.is_ok(), "{mode:?}: no way to {to}");
        }
        for to in pod.endpoint().ips() {
            assert!(peer.ping(to).await.is_ok(), "{mode:?}: no way to {to}");
        }
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_policy_that_nftables_cannot_overrule_is_named() {
    let world = World::new(Mode::Nftables).await;
    world.run("iptables -P FORWARD DROP").await;
    let mut firewall = world.open().await;
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact());
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    assert!(report.notes[0].starts_with("chain FORWARD of table ip filter drops"));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn ports_are_random_if_that_is_asked_for() {
    for mode in Mode::ALL {
        for (masquerade, kept) in [
            (flannel_firewall::Masquerade::KeepPorts, true),
            (flannel_firewall::Masquerade::RandomPorts, false),
        ] {
            let world = World::new(mode).await;
            let options = FirewallOptions { masquerade, ..world.options() };
            let namespace = world.node().namespace();
            let mut firewall = Firewall::open(namespace, options).await.unwrap();
            assert!(firewall.sync(&scope()).await.is_exact());
            let receiver = socket(world.outside().namespace(), world.outside().ip()).await;
            let target = receiver.local_addr().unwrap();
            let mut same = 0;
            for _ in 0..FLOWS {
                let sender = socket(world.pod.namespace(), world.pod.ip()).await;
                let own = sender.local_addr().unwrap().port();
                sender.send_to(b"x", target).await.unwrap();
                let (_, from) = receiver.recv_from(&mut [0; 8]).await.unwrap();
                same += usize::from(from.port() == own);
            }
            // By chance, one in 60,000 keeps its port.
            let expected = if kept { FLOWS } else { 0 };
            assert_eq!(same, expected, "{mode:?} {masquerade:?}");
        }
    }
}

const FLOWS: usize = 10;
