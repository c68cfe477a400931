//! What keeps the rules if nobody has said what must, and what an old mode leaves.

use flannel_firewall::{Firewall, FirewallMode, FirewallOptions, ModeChoice};

use crate::world::{Mode, World, quiet, scope};

/// Tables of nft's own that iptables cannot read.
const NATIVE: &str = "nft 'add table ip nat; add chain ip nat odd; add rule ip nat odd meta random lt 5 log return; \
                      add table ip filter; add chain ip filter odd; add rule ip filter odd meta random lt 5 log return'";

async fn open(world: &World, mode: ModeChoice) -> Firewall {
    let options = FirewallOptions { mode, ..world.options() };
    Firewall::open(world.node().namespace(), options).await.unwrap()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_cannot_be_removed_does_not_keep_the_rest() {
    let world = World::new(Mode::IptablesNft).await;
    open(&world, ModeChoice::Nftables).await.sync(&scope()).await;
    let mut firewall = open(&world, ModeChoice::Iptables).await;
    world.replace_tool("iptables-restore", "echo no >&2; exit 4");
    assert!(!firewall.sync(&scope()).await.is_exact());
    let tables = world.run("nft list tables").await;
    assert!(tables.contains("flannel-ipv4"), "it has to be there until then: {tables}");
    // There is something to remove.
    world.restore_tool("iptables-restore", "nft");
    world.run("iptables -t nat -N FLANNEL-POSTRTG").await;
    world.replace_tool("iptables-restore", "echo no >&2; exit 4");
    let left = firewall.teardown().await.unwrap_err().to_string();
    assert!(left.contains("iptables"), "{left}");
    let tables = world.run("nft list tables").await;
    assert!(!tables.contains("flannel-ipv"), "{tables}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_works_keeps_the_rules_if_nobody_has_decided() {
    let world = World::new(Mode::IptablesNft).await;
    world.run(NATIVE).await;
    let mut firewall = open(&world, ModeChoice::Auto).await;
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact(), "{report:?}");
    assert_eq!(report.mode, Some(FirewallMode::Nftables));
    assert!(world.masquerades().await);
    assert!(quiet(&firewall.sync(&scope()).await));
    let mut told = open(&world, ModeChoice::Iptables).await;
    let report = told.sync(&scope()).await;
    assert!(report.faults[0].to_string().contains("only nft can read"), "{report:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_ceases_to_work_is_left() {
    let world = World::new(Mode::IptablesNft).await;
    let mut firewall = open(&world, ModeChoice::Auto).await;
    let report = firewall.sync(&scope()).await;
    assert_eq!((report.is_exact(), report.mode), (true, Some(FirewallMode::Iptables)));
    world.run(&format!("{NATIVE}; nft flush chain ip nat FLANNEL-POSTRTG")).await;
    let report = firewall.sync(&scope()).await;
    assert_eq!(
        (report.is_exact(), report.mode),
        (true, Some(FirewallMode::Nftables)),
        "{report:?}"
    );
    assert!(world.masquerades().await);
    let all = world.everything().await;
    assert!(!all.contains("FLANNEL-"), "what iptables had is gone: {all}");

    // A program that does not even say its version is the same.
    for name in ["iptables", "ip6tables"] {
        let world = World::new(Mode::IptablesNft).await;
        world.replace_tool(name, "exit 1");
        let report = open(&world, ModeChoice::Auto).await.sync(&scope()).await;
        assert_eq!(
            (report.is_exact(), report.mode),
            (true, Some(FirewallMode::Nftables)),
            "{report:?}"
        );
        let options = FirewallOptions { mode: ModeChoice::Iptables, ..world.options() };
        let asked = Firewall::open(world.node().namespace(), options).await;
        assert!(asked.is_err(), "who asks for it is told");
    }

    // A program that fails again and again is the same.
    let world = World::new(Mode::IptablesNft).await;
    world.replace_tool("iptables-restore", "echo no >&2; exit 4");
    let mut firewall = open(&world, ModeChoice::Auto).await;
    for _ in 0..2 {
        assert!(!firewall.sync(&scope()).await.is_exact());
    }
    let report = firewall.sync(&scope()).await;
    assert_eq!(
        (report.is_exact(), report.mode),
        (true, Some(FirewallMode::Nftables)),
        "{report:?}"
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_legacy_rules_of_a_flanneld_before_go_once_ours_are_there() {
    let mut world = World::new(Mode::IptablesLegacy).await;
    drop(world.start().await);
    let count = "(iptables-legacy-save; ip6tables-legacy-save) | grep -c flanneld";
    assert_eq!(world.run(count).await, "20");
    world.switch_to(Mode::IptablesNft);
    // Whoever may not look at them is no worse off than before.
    world.replace_tool(
        "iptables-legacy-save",
        "echo 'Permission denied (you must be root)' >&2; exit 4",
    );
    let mut firewall = world.open().await;
    let report = firewall.sync(&scope()).await;
    assert!(report.is_exact(), "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("iptables-legacy-save")), "{report:?}");
    world.restore_tool("iptables-legacy-save", "legacy");
    let mut firewall = world.open().await;
    assert!(firewall.sync(&scope()).await.is_exact());
    assert_eq!(world.try_run(count).await.1, "0");
    assert!(world.masquerades().await);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_look_at_legacy_iptables_by_anybody_changes_nothing() {
    for mode in [Mode::IptablesNft, Mode::Nftables] {
        let world = World::new(mode).await;
        world.run("iptables-legacy -L -n; iptables-legacy -t nat -L -n").await;
        let report = world.open().await.sync(&scope()).await;
        assert!(report.is_exact(), "{mode:?}: {report:?}");
    }
}
