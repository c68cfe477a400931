//! Two networks in one namespace.

use std::time::Duration;

use flannel_core::NetworkConfig;
use flannel_firewall::{Firewall, FirewallOptions, Scope};
use tokio::time::timeout;

use crate::world::{Mode, World, quiet, scope};

/// A node of another network.
fn other() -> Scope {
    let config: NetworkConfig =
        r#"{"Network":"10.99.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:99::/48"}"#
            .parse()
            .unwrap();
    Scope::new(&config, &"10.99.1.0-24&fd00:99:0:1::-64".parse().unwrap())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_networks_live_beside_each_other() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        if mode != Mode::Nftables {
            world.run("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").await;
        }
        let mut first = world.start().await;
        let mut second = world.open().await;
        assert!(second.sync(&other()).await.is_exact());
        for _ in 0..3 {
            assert_eq!(first.sync(&scope()).await.writes(), 0, "{mode:?}");
            assert_eq!(second.sync(&other()).await.writes(), 0, "{mode:?}");
        }
        assert!(quiet(&first.sync(&scope()).await) && quiet(&second.sync(&other()).await));
        let drift = async {
            tokio::select! {
                drifted = first.drifted() => drifted,
                drifted = second.drifted() => drifted,
            }
        };
        let idle = timeout(Duration::from_secs(1), drift).await;
        assert!(idle.is_err(), "{mode:?}: neither changes what the other has");
        let both = world.everything().await;
        assert!(both.contains("10.244.0.0/16") && both.contains("10.99.0.0/16"), "{both}");
        assert!(world.masquerades().await, "{mode:?}");
        for to in world.peer_pod.endpoint().ips() {
            assert!(world.pod.ping(to).await.is_ok(), "{mode:?}: no way to {to}");
        }

        // A restart finds them where they are, and a flush puts neither in the other's place for good.
        drop(second);
        let mut second = world.open().await;
        assert_eq!(second.sync(&other()).await.writes(), 0, "{mode:?}");
        world.run("nft flush ruleset; iptables -F; iptables -t nat -F; true").await;
        for _ in 0..3 {
            let _ = timeout(Duration::from_millis(400), first.drifted()).await;
            first.sync(&scope()).await;
            let _ = timeout(Duration::from_millis(400), second.drifted()).await;
            second.sync(&other()).await;
        }
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{mode:?}");
        assert_eq!(second.sync(&other()).await.writes(), 0, "{mode:?}");

        second.teardown().await.unwrap();
        let left = world.everything().await;
        assert!(left.contains("10.244.0.0/16") && !left.contains("10.99."), "{mode:?}: {left}");
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{mode:?}");
        first.teardown().await.unwrap();
        let left = world.everything().await.to_lowercase();
        assert!(!left.contains("flannel"), "{mode:?}: {left}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_networks_may_have_two_modes() {
    for (one, two) in [
        (Mode::IptablesNft, Mode::Nftables),
        (Mode::Nftables, Mode::IptablesNft),
        (Mode::IptablesLegacy, Mode::Nftables),
    ] {
        let mut world = World::new(one).await;
        let mut first = world.start().await;
        world.switch_to(two);
        let mut second = world.open().await;
        assert!(second.sync(&other()).await.is_exact());
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{one:?} and {two:?}");
        let both = world.everything().await;
        assert!(both.contains("10.244.0.0/16") && both.contains("10.99.0.0/16"), "{both}");
        second.teardown().await.unwrap();
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{one:?} and {two:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_rules_of_a_network_that_the_node_has_left_go() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let mut before = world.open().await;
        assert!(before.sync(&other()).await.is_exact());
        drop(before);
        let networks = ["10.99.0.0/16", "fd00:99::/48"].map(|block| block.parse().unwrap());
        let options = FirewallOptions { networks: networks.to_vec(), ..world.options() };
        let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
        assert!(firewall.sync(&scope()).await.is_exact());
        let all = world.everything().await;
        assert!(all.contains("10.244.0.0/16") && !all.contains("10.99."), "{mode:?}: {all}");
        assert!(!all.contains("fd00:99:"), "{mode:?}: {all}");
        // The same within one run.
        assert!(firewall.sync(&other()).await.is_exact());
        let all = world.everything().await;
        assert!(!all.contains("10.244.") && all.contains("10.99.0.0/16"), "{mode:?}: {all}");
    }
}
