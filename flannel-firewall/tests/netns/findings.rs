//! What is in the way of packets is found in rules that the programs of others wrote.

use flannel_firewall::{Direction, PacketPath, inspect};

use crate::world::{Mode, World};

/// From our pod to that of the peer.
fn path(world: &World) -> PacketPath {
    PacketPath::new(Direction::Forwarded, world.pod.ip(), world.peer_pod.ip())
        .through(Some("cni0".into()), Some("eth0".into()))
}

async fn findings(world: &World) -> String {
    let found = inspect(world.node().namespace(), &path(world), world.tool_folders()).await;
    found.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_iptables_does_to_a_packet_is_told() {
    for (mode, legacy) in [(Mode::IptablesNft, ""), (Mode::IptablesLegacy, " of legacy iptables")] {
        let world = World::new(mode).await;
        assert_eq!(findings(&world).await, "", "{mode:?}: no rules");
        world.run("iptables -P FORWARD DROP").await;
        let by_policy =
            format!("chain FORWARD of table ip filter{legacy} drops these packets by its policy");
        assert_eq!(findings(&world).await, by_policy, "{mode:?}");
        // What Docker has, as far as it is about others.
        world
            .run(
                "iptables -N DOCKER; iptables -A FORWARD -j DOCKER; iptables -A DOCKER -i docker0 ! -o docker0 -j RETURN; \
                 iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                 iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                 iptables -A FORWARD -i docker0 -j ACCEPT; iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            )
            .await;
        assert_eq!(findings(&world).await, by_policy, "{mode:?}");
        let _firewall = world.start().await;
        assert_eq!(findings(&world).await, "", "{mode:?}: ours accept");

        world.run("iptables -I FORWARD 2 -s 10.244.0.0/16 -p tcp --dport 25 -j REJECT").await;
        let perhaps =
            format!("chain FORWARD of table ip filter{legacy} may drop these packets by rule 2");
        assert_eq!(findings(&world).await, perhaps, "{mode:?}");
        world.run("iptables -I DOCKER -i cni+ -j DROP").await;
        assert_eq!(
            findings(&world).await,
            format!("chain DOCKER of table ip filter{legacy} drops these packets by rule 1")
        );
        world.run("iptables -F DOCKER; iptables -D FORWARD 2").await;

        world.run("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE").await;
        let masquerades = format!(
            "chain POSTROUTING of table ip nat{legacy} masquerades these packets by rule 3"
        );
        assert_eq!(findings(&world).await, masquerades, "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_nftables_does_to_a_packet_is_told() {
    let world = World::new(Mode::Nftables).await;
    let _firewall = world.start().await;
    assert_eq!(findings(&world).await, "");
    for (rules, says) in [
        (
            "add chain inet x f { type filter hook forward priority 10; policy drop; }",
            "chain f of table inet x drops these packets by its policy",
        ),
        (
            "add chain inet x f { type filter hook forward priority 10; }; add rule inet x f counter; \
             add rule inet x f meta nfproto ipv4 ip daddr 10.244.2.0/24 log drop",
            "chain f of table inet x drops these packets by rule 2",
        ),
        (
            "add chain inet x f { type filter hook prerouting priority -150; }; \
             add rule inet x f iifname \"cni*\" ct state new reject",
            "chain f of table inet x drops these packets by rule 1",
        ),
        (
            "add chain inet x f { type filter hook forward priority 0; }; add chain inet x g; \
             add rule inet x f tcp dport { 25, 26 } jump g; add rule inet x g drop",
            "chain g of table inet x may drop these packets by rule 1",
        ),
        (
            "add chain inet x f { type nat hook postrouting priority 90; }; \
             add rule inet x f oifname eth0 snat ip to 192.0.2.9",
            "chain f of table inet x masquerades these packets by rule 1",
        ),
        (
            "add chain inet x f { type filter hook input priority 0; policy drop; }; \
             add chain inet x g { type filter hook forward priority 0; policy drop; }; \
             add rule inet x g ip saddr 10.244.0.0/16 accept",
            "",
        ),
    ] {
        world.run(&format!("nft 'add table inet x; {rules}'")).await;
        assert_eq!(findings(&world).await, says, "{rules}");
        world.run("nft delete table inet x").await;
    }
}
