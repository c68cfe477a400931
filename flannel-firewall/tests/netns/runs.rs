//! How often programs are run, and what becomes of one that refuses.

use flannel_firewall::{Firewall, FirewallOptions, Scope};

use crate::world::{Mode, World, config, scope};

/// What a node without IPv6 is about.
fn ipv4_scope() -> Scope {
    Scope::new(&config(), &"10.244.1.0-24".parse().unwrap())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn one_run_writes_and_one_proves_it() {
    for mode in [Mode::IptablesNft, Mode::IptablesLegacy] {
        let world = World::new(mode).await;
        let mut firewall = world.open().await;
        assert_eq!(world.run_names(), [""; 0], "who they are their names tell");
        let report = firewall.sync(&ipv4_scope()).await;
        assert!(report.is_exact() && report.added > 0, "{mode:?}: {report:?}");
        assert_eq!(world.run_names(), ["iptables-restore", "iptables-save"], "{mode:?}");
        assert_eq!(report.runs, 2);
        assert_eq!(firewall.sync(&ipv4_scope()).await.runs, 0, "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn where_others_have_rules_they_are_read_first() {
    for mode in [Mode::IptablesNft, Mode::IptablesLegacy] {
        let world = World::new(mode).await;
        world.run("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP").await;
        let runs = world.runs();
        let report = world.open().await.sync(&ipv4_scope()).await;
        let expected = ["iptables-save", "iptables-restore", "iptables-save"];
        let mut ran = world.run_names().split_off(runs);
        // Which chains legacy iptables has only itself can tell.
        ran.retain(|name| name != "ip6tables-save");
        assert_eq!((ran.as_slice(), report.is_exact()), (&expected.map(String::from)[..], true));
        let all = world.runs() - runs;
        assert_eq!(report.runs, all as u64, "{mode:?}");
        assert!(all <= if mode == Mode::IptablesNft { 3 } else { 5 }, "{mode:?}: {all}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn rules_of_a_family_that_is_not_in_use_any_more_go() {
    for mode in [Mode::IptablesNft, Mode::IptablesLegacy] {
        let world = World::new(mode).await;
        drop(world.start().await);
        // Whose they are is not known without the network that they are about.
        let mut unknowing = world.open().await;
        assert_eq!(unknowing.sync(&ipv4_scope()).await.writes(), 0, "{mode:?}");
        let networks = vec!["fd00:10:244::/48".parse().unwrap()];
        let options = FirewallOptions { networks, ..world.options() };
        let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
        let report = firewall.sync(&ipv4_scope()).await;
        assert!(report.is_exact() && report.removed > 0, "{mode:?}: {report:?}");
        let ours = world.run("ip6tables-save").await;
        assert!(!ours.contains("FLANNEL"), "{mode:?}: {ours}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_table_that_is_refused_does_not_cost_the_other() {
    let world = World::new(Mode::IptablesNft).await;
    world.replace_tool(
        "iptables-restore",
        "text=$(cat)\ncase $text in *'*nat'*) echo no >&2; exit 4;; esac\n\
         echo \"$text\" | exec /usr/sbin/iptables-nft-restore --noflush",
    );
    let report = world.open().await.sync(&scope()).await;
    let faults: Vec<_> = report.faults.iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("cannot write table nat of iptables: "), "{faults:?}");
    let ours = world.ours().await;
    assert!(ours.contains("-A FLANNEL-FWD -s 10.244.0.0/16"), "{ours}");
    assert!(!ours.contains("-A FLANNEL-POSTRTG -s 10.244.1.0/24"), "{ours}");
}
