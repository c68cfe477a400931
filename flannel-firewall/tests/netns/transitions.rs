//! Changes of what keeps the rules, and of the rules themselves, under traffic: nothing is lost.

use flannel_firewall::{Firewall, FirewallOptions, Masquerade, Scope};
use flannel_testbed::{eventually, probe::streams};
use tokio::join;

use crate::world::{Mode, World, config, scope};

/// What flanneld leaves in nftables, which differs from ours.
const FLANNELS_TABLES: &str = r#"
for f in "ip flannel-ipv4 10.244 16 24 224.0.0.0/4" "ip6 flannel-ipv6 fd00:10:244 48 64 ff00::/8"; do set -- $f
case $1 in ip) N=10.244.0.0/16 P=10.244.1.0/24;; *) N=fd00:10:244::/48 P=fd00:10:244:1::/64;; esac
nft "add table $1 $2 { comment \"rules for $2\" ; }
add chain $1 $2 forward { type filter hook forward priority 0; policy accept; }
add rule $1 $2 forward $1 saddr $N accept
add rule $1 $2 forward $1 daddr $N accept
add chain $1 $2 postrtg { type nat hook postrouting priority 100; }
add rule $1 $2 postrtg meta mark 0x4000 return
add rule $1 $2 postrtg $1 saddr $P $1 daddr $N return
add rule $1 $2 postrtg $1 saddr $N $1 daddr $P return
add rule $1 $2 postrtg $1 saddr != $P $1 daddr $N return
add rule $1 $2 postrtg $1 saddr $N $1 daddr != $6 masquerade fully-random
add rule $1 $2 postrtg $1 saddr != $N $1 daddr $N masquerade fully-random"
done
"#;

/// Probes 1,000 times a second, in both families, to a peer and masqueraded to the outside, while `change` is made.
async fn nothing_is_lost(world: &World, what: &str, change: impl AsyncFnOnce()) {
    let outside = world.outside().endpoint();
    let inside = streams(&world.pod, &world.peer_pod, 1000).unwrap();
    let masqueraded = streams(&world.pod, outside, 1000).unwrap();
    join!(inside.flowing(), masqueraded.flowing());
    change().await;
    join!(inside.flowing(), masqueraded.flowing());
    for (to, streams) in [("a peer", inside), ("the outside", masqueraded)] {
        let report = streams.stop().await;
        assert_eq!(report.lost, 0, "{what}: to {to}: {report:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn no_change_of_mode_loses_a_packet() {
    for (from, to) in [
        (Mode::Nftables, Mode::IptablesNft),
        (Mode::IptablesNft, Mode::Nftables),
        (Mode::IptablesLegacy, Mode::Nftables),
        (Mode::Nftables, Mode::IptablesLegacy),
        (Mode::IptablesLegacy, Mode::IptablesNft),
    ] {
        let mut world = World::new(from).await;
        let before = world.start().await;
        world.switch_to(to);
        nothing_is_lost(&world, &format!("{from:?} to {to:?}"), async || {
            // One run ends, and the next begins.
            drop(before);
            let mut firewall = world.open().await;
            assert!(firewall.sync(&scope()).await.is_exact());
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn no_edit_of_the_configuration_loses_a_packet() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        if mode != Mode::Nftables {
            world.run("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").await;
        }
        let mut firewall = world.start().await;
        nothing_is_lost(&world, &format!("{mode:?}: a larger network"), async || {
            let text =
                r#"{"Network":"10.240.0.0/12","EnableIPv6":true,"IPv6Network":"fd00:10:244::/47"}"#;
            let own = "10.244.1.0-24&fd00:10:244:1::-64".parse().unwrap();
            let larger = Scope::new(&text.parse().unwrap(), &own);
            assert!(firewall.sync(&larger).await.is_exact());
            assert!(firewall.sync(&scope()).await.is_exact());
            let other = "10.244.9.0-24&fd00:10:244:9::-64".parse().unwrap();
            assert!(firewall.sync(&Scope::new(&config(), &other)).await.is_exact());
            assert!(firewall.sync(&scope()).await.is_exact());
        })
        .await;
        nothing_is_lost(&world, &format!("{mode:?}: other options"), async || {
            drop(firewall);
            let masquerade = Masquerade::KeepPorts;
            let options = FirewallOptions { masquerade, ..world.options() };
            let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
            assert!(firewall.sync(&scope()).await.is_exact());
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn taking_over_flannels_tables_and_handing_over_loses_no_packet() {
    let world = World::new(Mode::Nftables).await;
    world.run(FLANNELS_TABLES).await;
    let flannels = world.ours().await;
    assert!(
        flannels.contains("ip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return"),
        "{flannels}"
    );
    nothing_is_lost(&world, "there and back", async || {
        let mut firewall = world.start().await;
        assert_ne!(world.ours().await, flannels);
        assert!(firewall.sync(&scope()).await.is_exact());
        firewall.hand_over(&scope()).await.unwrap();
    })
    .await;
    let rules = |text: &str| {
        let lines =
            text.lines().filter(|line| line.contains("return") || line.contains("masquerade"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rules(&world.ours().await), rules(&flannels), "as flanneld made them");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn handing_over_leaves_flannels_chains_and_nothing_else() {
    for mode in [Mode::IptablesNft, Mode::IptablesLegacy] {
        let world = World::new(mode).await;
        let plain = world.start().await;
        let expected = world.ours().await;
        drop(plain);
        let keep_source = vec!["192.0.2.0/24".parse().unwrap()];
        let options = FirewallOptions { keep_source, ..world.options() };
        let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
        assert!(firewall.sync(&scope()).await.is_exact());
        assert_ne!(world.ours().await, expected);
        nothing_is_lost(&world, &format!("{mode:?}"), async || {
            firewall.hand_over(&scope()).await.unwrap();
        })
        .await;
        assert_eq!(world.ours().await, expected, "{mode:?}");
        // The kernel closes the socket that a table belongs to when it has time.
        let gone = async || !world.run("nft list tables").await.contains("guard");
        eventually(gone).await;
    }
}
