//! From one mode, lease or name to another, and away; and what others have stays.

use std::fs;

use flannel_firewall::{
    Family, Firewall, FirewallError, FirewallMode, FirewallOptions, Masquerade, ModeChoice, Scope,
};
use flannel_testbed::Powerless;

use crate::world::{Mode, World, config, quiet, scope};

/// Rules of others, as near to ours as they can be.
const FOREIGN: &str = r#"
nft add table ip flannel-ipv5
nft 'add chain ip flannel-ipv5 postrtg { type nat hook postrouting priority 100; }'
nft add rule ip flannel-ipv5 postrtg ip saddr 10.244.0.0/16 return
nft add table inet flannel-ipv4
for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
    $i -t nat -N FLANNEL-POSTRTG2
    $i -t nat -A FLANNEL-POSTRTG2 -m comment --comment "flanneld masq" -j RETURN
    $i -t nat -A POSTROUTING -m comment --comment "flanneld masq too" -j RETURN
    $i -A FORWARD -m comment --comment "not flanneld forward" -j ACCEPT
    $i -A FORWARD -p tcp --dport 80 -j ACCEPT
    $i -t mangle -A FORWARD -m comment --comment "flanneld forward" -j ACCEPT
done
"#;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_others_have_survives_everything() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        world.run(FOREIGN).await;
        let before = world.everything().await;
        let mut firewall = world.start().await;
        assert_ne!(world.everything().await, before);
        let other = "10.244.9.0-24&fd00:10:244:9::-64".parse().unwrap();
        assert!(firewall.sync(&Scope::new(&config(), &other)).await.is_exact());
        firewall.teardown().await.unwrap();
        assert_eq!(world.everything().await, before, "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_change_of_mode_leaves_nothing_of_the_mode_before() {
    for (from, to) in [
        (Mode::Nftables, Mode::IptablesNft),
        (Mode::IptablesNft, Mode::Nftables),
        (Mode::IptablesLegacy, Mode::Nftables),
        (Mode::Nftables, Mode::IptablesLegacy),
        (Mode::IptablesLegacy, Mode::IptablesNft),
        (Mode::IptablesNft, Mode::IptablesLegacy),
    ] {
        let reference = World::new(to).await;
        // The tables of iptables are there in either case, as on most machines.
        let tables = "for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $i -P FORWARD ACCEPT; $i -t nat -P POSTROUTING ACCEPT; done";
        reference.run(tables).await;
        let _firewall = reference.start().await;
        let mut world = World::new(from).await;
        world.run(tables).await;
        drop(world.start().await);
        world.switch_to(to);
        let _firewall = world.start().await;
        // The order of tables is that of their making.
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let expected = sorted(reference.everything().await);
        assert_eq!(sorted(world.everything().await), expected, "{from:?} to {to:?}");
        assert!(world.masquerades().await, "{from:?} to {to:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nothing_is_run_in_nftables_mode() {
    let world = World::new(Mode::Nftables).await;
    world.run("iptables -t nat -N FLANNEL-POSTRTG").await;
    let runs = world.runs();
    let firewall = world.start().await;
    assert!(!world.everything().await.contains("FLANNEL"));
    firewall.teardown().await.unwrap();
    assert_eq!(world.runs(), runs);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_restart_finds_its_rules_and_writes_nothing() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        drop(world.start().await);
        let before = world.everything().await;
        let mut firewall = world.open().await;
        let report = firewall.sync(&scope()).await;
        assert_eq!((report.writes(), report.drifted, report.is_exact()), (0, 0, true), "{mode:?}");
        assert!(report.read > 0);
        assert_eq!(world.everything().await, before);
        assert!(quiet(&firewall.sync(&scope()).await));
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn rules_of_the_lease_before_go() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let mut firewall = world.open().await;
        let before = "10.244.77.0-24&fd00:10:244:77::-64".parse().unwrap();
        assert!(firewall.sync(&Scope::new(&config(), &before)).await.is_exact());
        assert!(world.ours().await.contains("10.244.77.0/24"));
        // By the same node, and by one that starts.
        assert!(firewall.sync(&scope()).await.is_exact());
        let after = world.ours().await;
        assert!(!after.contains(":77::") && !after.contains("10.244.77.0"), "{after}");
        assert!(after.contains("10.244.1.0/24"));
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_is_not_asked_for_any_more_goes() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        drop(world.start().await);
        let options =
            FirewallOptions { masquerade: Masquerade::Off, forward: false, ..world.options() };
        let mut firewall = Firewall::open(world.node().namespace(), options).await.unwrap();
        let report = firewall.sync(&scope()).await;
        assert!(report.is_exact() && report.removed > 0 && report.added == 0, "{report:?}");
        assert!(!world.everything().await.to_lowercase().contains("flannel"), "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_nodes_with_two_names_live_beside_each_other() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let mut first = world.start().await;
        let options = FirewallOptions { name: "blue".parse().unwrap(), ..world.options() };
        let mut second = Firewall::open(world.node().namespace(), options).await.unwrap();
        assert!(second.sync(&scope()).await.is_exact());
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{mode:?}");
        assert_eq!(second.sync(&scope()).await.writes(), 0, "{mode:?}");
        let both = world.everything().await.to_lowercase();
        assert!(both.contains("blue-") && both.contains("flannel-"));
        second.teardown().await.unwrap();
        let left = world.everything().await.to_lowercase();
        assert!(!left.contains("blue-") && left.contains("flannel-"));
        assert_eq!(first.sync(&scope()).await.writes(), 0, "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_rules_are_flannels_to_the_byte() {
    let world = World::new(Mode::IptablesNft).await;
    let _firewall = world.start().await;
    let expected = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-N FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-N FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#;
    let shown = world
        .run(
            "iptables -t nat -S POSTROUTING | grep FLANNEL; iptables -t nat -S FLANNEL-POSTRTG; \
             iptables -S FORWARD | grep FLANNEL; iptables -S FLANNEL-FWD",
        )
        .await;
    assert_eq!(shown, expected);
    // flanneld deletes what it finds by the same words, and so can others.
    for line in expected.lines().filter(|line| line.contains("masq")) {
        world.run(&format!("iptables -t nat {}", line.replacen("-A", "-D", 1))).await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_tables_are_what_nft_makes_of_their_text() {
    let world = World::new(Mode::Nftables).await;
    let _firewall = world.start().await;
    let code = "nft --debug=netlink list table ip flannel-ipv4; nft --debug=netlink list table ip6 flannel-ipv6";
    // Numbers of rules differ, and nothing else.
    let settled = |text: String| {
        let lines = text.lines().map(|line| match line.split_once(' ') {
            Some((family @ ("ip" | "ip6"), rest)) => {
                let words: Vec<_> = rest.split(' ').take(2).collect();
                format!("{family} {}", words.join(" "))
            }
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let (ours, text) = (settled(world.run(code).await), world.ours().await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules");
    fs::write(&file, &text).unwrap();
    world.run(&format!("nft flush ruleset; nft -f {}", file.display())).await;
    assert_eq!(world.ours().await, text);
    assert_eq!(settled(world.run(code).await), ours);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_machine_decides_if_nobody_else_does() {
    let world = World::new(Mode::IptablesNft).await;
    let open = async |mode, folder: &str| {
        let tool_folders = vec![folder.into()];
        let options = FirewallOptions { mode, tool_folders, ..world.options() };
        Firewall::open(world.node().namespace(), options).await
    };
    let auto = Firewall::open(
        world.node().namespace(),
        FirewallOptions { mode: ModeChoice::Auto, ..world.options() },
    );
    assert_eq!(auto.await.unwrap().mode(), Some(FirewallMode::Iptables));
    let without = open(ModeChoice::Auto, "/nonexistent").await.unwrap();
    assert_eq!(without.mode(), Some(FirewallMode::Nftables));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn who_asks_for_iptables_and_has_none_gets_the_same_rules_in_nftables() {
    let world = World::new(Mode::IptablesNft).await;
    drop(world.start().await);
    let mut firewall =
        Firewall::open(world.node().namespace(), without_iptables(&world)).await.unwrap();
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact(), "{report:?}");
    assert_eq!(report.mode, Some(FirewallMode::Nftables));
    assert!(report.notes.iter().any(|note| note.contains("remove EnableNFTables")), "{report:?}");
    assert!(world.masquerades().await);
    assert!(
        !world.everything().await.contains("FLANNEL-"),
        "what a flanneld with iptables left is gone"
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forward_rules_that_nobody_can_keep_are_no_reason_to_stop() {
    let world = World::new(Mode::IptablesNft).await;
    let open = async |options| {
        let _powerless = Powerless::enter();
        Firewall::open(world.node().namespace(), options).await
    };
    let error = open(without_iptables(&world)).await.unwrap_err();
    assert!(matches!(error, FirewallError::Unsupported { .. }) && !error.is_retryable());
    assert!(error.to_string().contains("remove EnableNFTables"), "{error}");

    let options = FirewallOptions { masquerade: Masquerade::Off, ..without_iptables(&world) };
    // Rules that drop what is in the clear are one.
    let tunnels = [(Family::Ipv4, "flannel-wg".to_owned())].into();
    let error = open(FirewallOptions { tunnels, ..options.clone() }).await.unwrap_err();
    assert!(matches!(error, FirewallError::Unsupported { .. }), "{error}");

    let mut firewall = open(options).await.unwrap();
    assert_eq!(firewall.mode(), None);
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact() && report.writes() == 0);
    assert!(report.notes[0].contains("iptables-restore are not installed"), "{:?}", report.notes);
}

/// Somebody asks for iptables where none is installed.
fn without_iptables(world: &World) -> FirewallOptions {
    let tool_folders = vec!["/nonexistent".into()];
    FirewallOptions { mode: ModeChoice::Iptables, tool_folders, ..world.options() }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_table_that_iptables_cannot_read_is_named_with_the_remedy() {
    let world = World::new(Mode::IptablesNft).await;
    world
        .run(
            "iptables -t nat -P POSTROUTING ACCEPT; nft add chain ip nat odd; nft add rule ip nat odd meta cgroup 5 meta random lt 5 log return",
        )
        .await;
    let mut firewall = world.open().await;
    let report = firewall.sync(&scope()).await;
    let faults: Vec<_> = report.faults.iter().map(ToString::to_string).collect();
    assert!(faults.len() == 1 && faults[0].contains("only nft can read"), "{faults:?}");
}
