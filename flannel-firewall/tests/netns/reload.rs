//! What administrators and other programs do to all rules of a host at once works while a node runs.

use flannel_testbed::{eventually, probe::flow};

use crate::world::{Mode, World, scope};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn saving_and_loading_all_rules_works_while_a_node_runs() {
    for mode in Mode::ALL {
        for line in [
            "nft list ruleset > $F && nft -f $F",
            "nft list ruleset > $F && nft flush ruleset && nft -f $F",
            "(echo flush ruleset; nft list ruleset) > $F && nft -f $F",
            "nft flush ruleset",
            "iptables-save | iptables-restore; ip6tables-save | ip6tables-restore",
        ] {
            if mode == Mode::IptablesLegacy && line.contains("nft list") {
                continue;
            }
            let world = World::new(mode).await;
            let mut firewall = world.start().await;
            let before = world.ours().await;
            let file = tempfile::NamedTempFile::new().unwrap();
            let line = line.replace("$F", &file.path().display().to_string());
            let (success, output) = world.try_run(&line).await;
            assert!(success, "{mode:?}: {line}: {output}");
            let repaired = world.repair(&mut firewall, async || world.ours().await == before).await;
            assert!(repaired, "{mode:?}: {line}: {}", world.ours().await);
            assert!(world.masquerades().await, "{mode:?}: {line}");
            let report = firewall.sync(&scope()).await;
            assert!(report.is_exact(), "{mode:?}: {line}: {report:?}");
            firewall.teardown().await.unwrap();
            let left = world.everything().await.to_lowercase();
            assert!(!left.contains("flannel"), "{mode:?}: {line}: {left}");
        }
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn flows_survive_when_all_rules_are_saved_and_loaded() {
    for mode in [Mode::IptablesNft, Mode::Nftables] {
        let world = World::new(mode).await;
        let mut firewall = world.start().await;
        let before = world.ours().await;
        let flow = flow(&world.pod, world.outside()).await.unwrap();
        eventually(async || flow.rounds() > 100).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.path().display();
        world.run(&format!("nft list ruleset > {file}; nft flush ruleset; nft -f {file}")).await;
        let repaired = world.repair(&mut firewall, async || world.ours().await == before).await;
        assert!(repaired, "{mode:?}: {}", world.ours().await);
        let after = flow.rounds();
        eventually(async || flow.rounds() > after + 100).await;
        flow.stop().await.unwrap();
    }
}
