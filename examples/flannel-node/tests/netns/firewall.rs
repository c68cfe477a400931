//! The firewall of a node that runs.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, process::Command};

use super::support::{Cluster, HOST_GW, asked, eventually, program};

/// All rules on the first host, as the programs of others print them.
async fn rules(cluster: &Cluster) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", "iptables-save; ip6tables-save; nft list ruleset"]);
    let mut process = cluster.host(0).spawn(command).unwrap();
    process.wait().await.unwrap();
    process.output().join("\n")
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_masquerades_if_it_is_asked_to_and_repairs_that() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let mut command = cluster.command(program(), 0);
    command.arg("--ip-masq");
    let _node = cluster.run(0, command).await;
    let env = fs::read_to_string(cluster.subnet_file(0)).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true"), "{env}");
    let masquerades = async || rules(&cluster).await.contains("masquerade fully-random");
    assert!(masquerades().await, "the rules are there before the file");
    let mut command = Command::new("nft");
    command.args(["flush", "ruleset"]);
    cluster.host(0).spawn(command).unwrap().wait().await.unwrap();
    eventually(masquerades).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_forwards_and_does_not_masquerade_unless_it_is_asked_to() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let _node = cluster.run(0, cluster.command(program(), 0)).await;
    let rules = rules(&cluster).await;
    assert!(rules.contains("accept") && !rules.contains("masquerade"), "{rules}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_numbers_say_who_keeps_the_rules_and_what_that_took() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let mut command = cluster.command(program(), 0);
    command.arg("--ip-masq");
    let _node = cluster.run(0, command).await;
    let socket = cluster.subnet_file(0).with_extension("sock");
    let number = |name: &str| {
        let text = asked(&socket, "/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse::<u64>().unwrap()
    };
    assert_eq!(number("flannel_firewall_info{mode=\"iptables\"}"), 1);
    assert_eq!(number("flannel_firewall_exact"), 1);
    // Six rules and two, and a jump to each of the chains; written by one run and proved by another.
    assert_eq!(number("flannel_firewall_rule_writes_total{kind=\"added\"}"), 10);
    assert_eq!(number("flannel_firewall_program_runs_total"), 2);
    let mut command = Command::new("iptables");
    command.args(["-F", "FLANNEL-FWD"]);
    cluster.host(0).spawn(command).unwrap().wait().await.unwrap();
    eventually(async || number("flannel_firewall_rule_writes_total{kind=\"added\"}") == 12).await;
    assert_eq!(number("flannel_drift_repaired_total{kind=\"chain\"}"), 1);
    assert_eq!(number("flannel_firewall_program_runs_total"), 5);
}
