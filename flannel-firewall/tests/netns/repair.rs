//! What others change is put right, and nothing is done when nothing is wrong.

use std::{process::Command, time::Duration};

use flannel_testbed::{eventually, probe::flow};
use tokio::time::{Instant, timeout};

use crate::world::{Mode, World, quiet, scope};

/// What people and programs do to the rules, for each of those who keep them.
fn damages(mode: Mode) -> &'static [&'static str] {
    match mode {
        Mode::Nftables => &[
            "nft flush ruleset",
            "nft delete table ip flannel-ipv4",
            "nft flush chain ip6 flannel-ipv6 postrtg",
            "nft insert rule ip flannel-ipv4 postrtg return",
            "nft add rule ip6 flannel-ipv6 forward drop",
            "nft replace rule ip6 flannel-ipv6 forward handle $(nft -a list chain ip6 flannel-ipv6 forward | sed -n 's/.*saddr.*handle //p') drop",
            "nft delete table ip6 flannel-ipv6",
            "nft add chain ip flannel-ipv4 more",
            "nft 'add table ip flannel-ipv4 { flags dormant; }'",
            "nft 'add chain ip flannel-ipv4 forward { policy drop; }'",
            "nft replace rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | sed -n 's/.*mark.*handle //p') return",
        ],
        _ => &[
            "iptables -F",
            "iptables -t nat -F",
            "ip6tables -F; ip6tables -t nat -F",
            "iptables -t nat -F POSTROUTING; iptables -t nat -F FLANNEL-POSTRTG; iptables -t nat -X FLANNEL-POSTRTG",
            "iptables -t nat -I FLANNEL-POSTRTG -j RETURN",
            "iptables -t nat -R FLANNEL-POSTRTG 5 -s 10.244.0.0/16 -j MASQUERADE",
            "ip6tables -t nat -D FLANNEL-POSTRTG 4",
            "iptables -D FLANNEL-FWD 1; iptables -A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT",
            "iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
        ],
    }
}

async fn every_damage_is_repaired(mode: Mode) {
    for damage in damages(mode) {
        let world = World::new(mode).await;
        let mut firewall = world.start().await;
        let before = world.ours().await;
        world.run(damage).await;
        assert_ne!(world.ours().await, before, "{mode:?}: {damage}");
        let began = Instant::now();
        let repaired = world.repair(&mut firewall, async || world.ours().await == before).await;
        assert!(repaired, "{mode:?}: {damage}: {}", world.ours().await);
        println!("{mode:?}: {} ms after {damage}", began.elapsed().as_millis());
        assert!(world.masquerades().await, "{mode:?}: {damage}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_damage_to_nftables_is_repaired() {
    every_damage_is_repaired(Mode::Nftables).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_damage_to_iptables_is_repaired() {
    every_damage_is_repaired(Mode::IptablesNft).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_damage_to_legacy_iptables_is_repaired() {
    every_damage_is_repaired(Mode::IptablesLegacy).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn flows_survive_a_flush_under_traffic() {
    for (mode, drop, flush) in [
        (Mode::IptablesNft, "iptables -P FORWARD DROP", "iptables -F; iptables -t nat -F"),
        (Mode::IptablesLegacy, "iptables -P FORWARD DROP", "iptables -F; iptables -t nat -F"),
        (Mode::IptablesNft, "true", "nft flush ruleset"),
        (Mode::Nftables, "true", "nft flush ruleset"),
    ] {
        let world = World::new(mode).await;
        world.run(drop).await;
        let mut firewall = world.start().await;
        let before = world.ours().await;
        let flow = flow(&world.pod, world.outside()).await.unwrap();
        eventually(async || flow.rounds() > 100).await;
        world.run(flush).await;
        let repaired = world.repair(&mut firewall, async || world.ours().await == before).await;
        assert!(repaired, "{mode:?}: {flush}: {}", world.ours().await);
        let after = flow.rounds();
        eventually(async || flow.rounds() > after + 100).await;
        let longest = flow.stop().await.unwrap();
        println!("{mode:?}: {flush}: the longest round took {longest:?}");
        // The time until the repair, and until TCP tries again after that.
        assert!(longest < Duration::from_secs(2), "{mode:?}: {flush}: {longest:?}");
        assert!(world.masquerades().await);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nothing_is_written_or_run_when_nothing_is_wrong() {
    for mode in Mode::ALL {
        let world = World::new(mode).await;
        let mut firewall = world.start().await;
        #[expect(clippy::disallowed_methods, reason = "nft says what is written, by whomever")]
        let mut command = Command::new("nft");
        command.arg("monitor");
        let mut monitor = world.node().spawn(command).unwrap();
        // It hears from some moment on.
        let hears = eventually(async || {
            world.run("nft add table inet begin; nft delete table inet begin").await;
            monitor.output().iter().any(|line| line.contains("add table inet begin"))
        });
        hears.await;
        let runs = world.runs();
        for _ in 0..5 {
            assert!(quiet(&firewall.sync(&scope()).await), "{mode:?}");
        }
        let idle = timeout(Duration::from_secs(1), firewall.drifted()).await;
        assert!(idle.is_err(), "{mode:?}: there is no drift");
        // What others write beside our rules is none of our business.
        let runs_of_others = match mode {
            Mode::Nftables => 0,
            _ => {
                world.run("iptables -t nat -N KUBE-X; iptables -t nat -A KUBE-X -j RETURN").await;
                2
            }
        };
        let idle = timeout(Duration::from_millis(500), firewall.drifted()).await;
        assert!(idle.is_err(), "{mode:?}: there is no drift of ours");
        let new_runs = world.runs() - runs - runs_of_others;
        match mode {
            // Each look is one run for each family, and there are at most five in 1.5 s.
            Mode::IptablesLegacy => assert!((1..=10).contains(&new_runs), "{new_runs}"),
            _ => assert_eq!(new_runs, 0, "{mode:?}"),
        }
        world.run("nft add table inet end").await;
        monitor.line(Duration::from_secs(1), |line| line.contains("table inet end")).await.unwrap();
        let foreign = ["begin", "end", "KUBE-X", "new generation"];
        let written: Vec<_> = monitor
            .output()
            .into_iter()
            .filter(|line| {
                !foreign.iter().any(|word| line.contains(word)) && !line.starts_with('#')
            })
            .collect();
        assert_eq!(written, [""; 0], "{mode:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn who_keeps_changing_the_rules_is_not_followed_all_the_time() {
    let world = World::new(Mode::Nftables).await;
    let mut firewall = world.start().await;
    let mut refused = 0;
    for _ in 0..30 {
        world.run("nft add rule ip flannel-ipv4 postrtg return").await;
        timeout(Duration::from_secs(1), firewall.drifted()).await.unwrap().unwrap();
        let report = firewall.sync(&scope()).await;
        refused += usize::from(!report.is_exact());
    }
    assert_eq!(refused, 20, "ten repairs within ten seconds, and not more");
}
