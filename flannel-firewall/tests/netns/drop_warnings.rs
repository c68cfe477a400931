//! Rules of others that drop the network's packets are named in the report, and those that let them pass are not. Packets prove it.

use std::{net::IpAddr, time::Duration};

use flannel_firewall::{Firewall, FirewallOptions};
use flannel_testbed::eventually;
use tokio::time::{sleep, timeout};

use crate::world::{Mode, World, scope};

/// What others have, by whose words, and whose packets it drops: all of IPv4, all of IPv6, or those from our pod to the outside.
struct Setting {
    what: &'static str,
    mode: Mode,
    lines: &'static str,
    drops: Drops,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Drops {
    Ipv4,
    Ipv6,
    Nothing,
    ToOutside,
}

const fn setting(mode: Mode, what: &'static str, drops: Drops, lines: &'static str) -> Setting {
    Setting { what, mode, lines, drops }
}

use Drops::{Ipv4, Ipv6, Nothing, ToOutside};
use Mode::{IptablesLegacy, IptablesNft, Nftables};

const SETTINGS: &[Setting] = &[
    setting(Nftables, "the policy that Docker sets", Ipv4, "iptables -P FORWARD DROP"),
    setting(Nftables, "the same for IPv6", Ipv6, "ip6tables -P FORWARD DROP"),
    setting(Nftables, "the same in legacy iptables", Ipv4, "iptables-legacy -P FORWARD DROP"),
    setting(
        IptablesNft,
        "a policy of nftables",
        Ipv4,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 10; policy drop; }'",
    ),
    setting(
        IptablesNft,
        "a reject before our jump",
        Ipv4,
        "iptables -I FORWARD -j REJECT --reject-with icmp-host-prohibited",
    ),
    setting(
        IptablesLegacy,
        "a reject before our jump in legacy iptables",
        Ipv4,
        "iptables -I FORWARD -j REJECT",
    ),
    setting(
        IptablesNft,
        "Docker 28: direct access to addresses behind its bridge",
        Ipv4,
        "iptables -t raw -A PREROUTING -d 10.244.1.0/24 ! -i docker0 -j DROP",
    ),
    setting(
        IptablesNft,
        "the network as source",
        Ipv4,
        "iptables -I FORWARD -s 10.244.0.0/16 -j DROP",
    ),
    setting(
        IptablesNft,
        "our subnet as destination",
        Ipv4,
        "iptables -I FORWARD -d 10.244.1.0/24 -j DROP",
    ),
    setting(
        IptablesNft,
        "a chain of the administrator's",
        Ipv4,
        "iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -i docker0 -j RETURN; \
         iptables -A DOCKER-USER -j DROP",
    ),
    setting(
        IptablesNft,
        "new connections",
        Ipv4,
        "iptables -I FORWARD -m conntrack --ctstate NEW -j DROP",
    ),
    setting(IptablesNft, "the mangle table", Ipv4, "iptables -t mangle -A FORWARD -o eth0 -j DROP"),
    setting(
        Nftables,
        "firewalld",
        Ipv4,
        "nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }; \
         add chain inet firewalld filter_FWD_public; \
         add rule inet firewalld filter_FORWARD ct state established,related accept; \
         add rule inet firewalld filter_FORWARD ct status dnat accept; \
         add rule inet firewalld filter_FORWARD iifname lo accept; \
         add rule inet firewalld filter_FORWARD ct state invalid drop; \
         add rule inet firewalld filter_FORWARD iifname docker0 goto filter_FWD_public; \
         add rule inet firewalld filter_FWD_public accept; \
         add rule inet firewalld filter_FORWARD meta nfproto ipv4 reject with icmpx admin-prohibited'",
    ),
    setting(
        Nftables,
        "ufw",
        Ipv4,
        "iptables -P FORWARD DROP; iptables -N ufw-before-forward; iptables -A FORWARD -j ufw-before-forward; \
         iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
         iptables -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT; \
         iptables -A ufw-before-forward -p tcp -m tcp --dport 22 -j ACCEPT",
    ),
    setting(
        Nftables,
        "a set with the network in it",
        Ipv4,
        "nft 'add table ip x; add set ip x blocked { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 }; }; \
         add chain ip x f { type filter hook forward priority 0; }; add rule ip x f ip daddr @blocked drop'",
    ),
    setting(
        Nftables,
        "a verdict map of devices",
        Ipv4,
        "nft 'add table ip x; add chain ip x f { type filter hook prerouting priority -150; }; \
         add rule ip x f iifname vmap { \"eth0\" : drop, \"docker0\" : accept }'",
    ),
    setting(
        Nftables,
        "everything but another network",
        Ipv4,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; \
         add rule ip x f ip saddr != 192.168.0.0/16 drop'",
    ),
    setting(
        Nftables,
        "IPv6 in a table for both",
        Ipv6,
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 0; }; \
         add rule inet x f meta nfproto ipv6 counter drop'",
    ),
    setting(
        Nftables,
        "one protocol",
        Ipv4,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f meta l4proto udp reject'",
    ),
    setting(
        Nftables,
        "ports above 1023",
        Ipv4,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f udp dport 1024-65535 drop'",
    ),
    setting(
        Nftables,
        "what leaves by the uplink to others than peers",
        ToOutside,
        "ip route add default dev eth0; nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; \
         add rule ip x f ip daddr 10.244.0.0/16 accept; add rule ip x f oifname eth0 ip saddr 10.244.0.0/16 drop'",
    ),
    setting(
        IptablesNft,
        "a policy that ours overrule",
        Nothing,
        "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
    ),
    setting(
        Nftables,
        "a policy, and the network in a set",
        Nothing,
        "nft 'add table ip x; add set ip x pods { type ipv4_addr; flags interval; elements = { 10.244.0.0/16 }; }; \
         add chain ip x f { type filter hook forward priority 0; policy drop; }; \
         add rule ip x f ip saddr @pods accept; add rule ip x f ip daddr @pods accept'",
    ),
    setting(
        Nftables,
        "a policy, and the devices",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; policy drop; }; \
         add rule ip x f iifname { \"eth0\", \"lo\" } accept; add rule ip x f oifname eth0 accept'",
    ),
    setting(
        Nftables,
        "what arrives for the host",
        Nothing,
        "nft 'add table ip x; add chain ip x i { type filter hook input priority 0; policy drop; }; \
         add rule ip x i icmp type echo-request accept'",
    ),
    setting(
        IptablesNft,
        "Docker 28 about its own containers",
        Nothing,
        "iptables -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP; iptables -N DOCKER; iptables -A FORWARD -j DOCKER; \
         iptables -A DOCKER ! -i docker0 -o docker0 -j DROP",
    ),
    setting(
        Nftables,
        "another port",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f tcp dport { 25, 465 } drop'",
    ),
    setting(
        Nftables,
        "a set of other addresses",
        Nothing,
        "nft 'add table ip x; add set ip x blocked { type ipv4_addr; flags interval; elements = { 203.0.113.0/24, 10.9.0.0/16 }; }; \
         add chain ip x f { type filter hook forward priority 0; }; add rule ip x f ip daddr @blocked drop'",
    ),
    setting(
        IptablesNft,
        "another network",
        Nothing,
        "iptables -I FORWARD -s 192.168.0.0/16 -j DROP",
    ),
    setting(
        IptablesNft,
        "packets to the host's own addresses",
        Nothing,
        "iptables -I FORWARD -m addrtype --dst-type LOCAL -j DROP",
    ),
    setting(
        Nftables,
        "what belongs to no connection",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f ct state invalid drop'",
    ),
    setting(
        Nftables,
        "what others have marked",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; add rule ip x f meta mark 0x1 drop'",
    ),
    setting(
        Nftables,
        "a check of the way back",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook prerouting priority -150; }; \
         add rule ip x f fib saddr . iif oif missing drop'",
    ),
    setting(
        Nftables,
        "a chain that nothing leads to",
        Nothing,
        "nft 'add table ip x; add chain ip x f; add rule ip x f drop'",
    ),
    setting(
        Nftables,
        "a rate above all of ours",
        Nothing,
        "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }; \
         add rule ip x f limit rate over 100000/second drop'",
    ),
];

/// Whether a packet of this family gets through from our pod to the peer's and back, and to the outside.
async fn passes(world: &World, is_ipv4: bool) -> (bool, bool) {
    let of_family = |ips: Vec<IpAddr>| ips.into_iter().find(|ip| ip.is_ipv4() == is_ipv4).unwrap();
    let pod = of_family(world.pod.endpoint().ips().collect());
    let peer = of_family(world.peer_pod.endpoint().ips().collect());
    let outside = of_family(world.outside().endpoint().ips().collect());
    let (pod, peer) = ((world.pod.namespace(), pod), (world.peer_pod.namespace(), peer));
    let outside = (world.outside().namespace(), outside);
    let peers = world.source_seen(pod, peer).await.is_some()
        && world.source_seen(peer, pod).await.is_some();
    (peers, world.source_seen(pod, outside).await.is_some())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn rules_of_others_that_drop_the_networks_packets_are_named() {
    for Setting { what, lines, drops, mode } in SETTINGS {
        let world = World::new(*mode).await;
        let mut firewall = world.start().await;
        assert_eq!(firewall.sync(&scope()).await.notes, [""; 0], "{mode:?}");
        world.run(lines).await;
        let proof = [passes(&world, true).await, passes(&world, false).await];
        let expected = match drops {
            Nothing => [(true, true), (true, true)],
            Ipv4 => [(false, proof[0].1), (true, true)],
            Ipv6 => [(true, true), (false, proof[1].1)],
            ToOutside => [(true, false), (true, true)],
        };
        assert_eq!(proof, expected, "{mode:?}: {what}: {drops:?}: packets");
        let notes = notes(&world).await;
        let words = match drops {
            Nothing => {
                assert_eq!(notes, [""; 0], "{mode:?}: {what}");
                continue;
            }
            Ipv4 => ["peers", "accept 10.244.0.0/16 there before that"],
            Ipv6 => ["peers", "accept fd00:10:244::/48 there before that"],
            ToOutside => ["packets from pods to the outside", "accept 10.244.0.0/16"],
        };
        for word in words {
            assert!(notes.iter().all(|note| note.contains(word)), "{mode:?}: {what}: {notes:?}");
        }
        assert!(!notes.is_empty(), "{mode:?}: {what}");
    }
}

/// What a report says of a firewall that looks for the first time.
async fn notes(world: &World) -> Vec<String> {
    let options = FirewallOptions { forwarding: false, ..world.options() };
    let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact(), "{report:?}");
    report.notes
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_running_node_hears_of_rules_of_others() {
    let world = World::new(Nftables).await;
    let mut firewall = world.start().await;
    let drop = "nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; policy drop; }'";
    for (line, is_named) in [(drop, true), ("nft delete table ip x", false), (drop, true)] {
        world.run(line).await;
        let heard = timeout(Duration::from_secs(20), async {
            loop {
                firewall.drifted().await.unwrap();
                let report = firewall.sync(&scope()).await;
                assert_eq!(
                    (report.writes(), report.read),
                    (0, 0),
                    "ours are untouched: {report:?}"
                );
                if report.notes.iter().any(|note| note.contains("table ip x")) == is_named {
                    return;
                }
            }
        });
        assert!(heard.await.is_ok(), "{line}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn rules_that_others_change_all_the_time_are_looked_at_now_and_then() {
    let world = World::new(Nftables).await;
    world
        .run("nft 'add table ip x; add chain ip x f { type filter hook forward priority 0; }'")
        .await;
    let mut firewall = world.start().await;
    let meddle = async {
        for number in 0..200 {
            let line = if number % 2 == 0 {
                "nft add rule ip x f counter drop"
            } else {
                "nft flush chain ip x f"
            };
            world.run(line).await;
            sleep(Duration::from_millis(5)).await;
        }
    };
    let mut told = 0;
    let keep = async {
        loop {
            firewall.drifted().await.unwrap();
            firewall.sync(&scope()).await;
            told += 1;
        }
    };
    let began = tokio::time::Instant::now();
    tokio::select! {
        () = meddle => {}
        () = keep => {}
    }
    // At most one look a second, and one to begin with.
    let most = began.elapsed().as_secs() + 2;
    assert!(told <= most, "{told} times in {:?}", began.elapsed());
    world.run("nft flush chain ip x f").await;
    let quiet = eventually(async || {
        let _ = timeout(Duration::from_millis(50), firewall.drifted()).await;
        firewall.sync(&scope()).await.notes.is_empty()
    });
    quiet.await;
}
