//! What rules of a host do to the packets of a tunnel, outside and inside.

use std::{net::IpAddr, time::Duration};

use flannel_testbed::{
    eventually,
    probe::{Ping, ping},
};

use super::support::{Cluster, program};

/// The table of what is dropped: hook, priority and rule, and a cell for each of the networks.
const DOCUMENTED: &str = include_str!("../../../../docs/firewall.md");

/// Each rule, on both hosts, drops packets of each path, or of none, as documented in the columns with these heads. Of packets between
/// pods a host's own INPUT and OUTPUT see the outer ones only.
pub(crate) async fn are_obeyed_as_documented(networks: &[(&str, &'static str)]) {
    let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
    let head = DOCUMENTED.lines().find(|line| line.starts_with("| hook |")).map(cells).unwrap();
    let rows: Vec<Vec<&str>> = DOCUMENTED
        .lines()
        .filter(|line| line.ends_with("| drops |") || line.ends_with("| passes |"))
        .map(|line| cells(line).into_iter().map(|cell| cell.trim_matches('`')).collect())
        .collect();
    assert!(rows.len() > 8, "{rows:?}");
    let how = Ping::default().timeout(Duration::from_millis(300));
    let mut wrong = Vec::new();
    for &(name, network) in networks {
        let column = head.iter().position(|cell| *cell == name).expect(name);
        let cluster = Cluster::new(2, network).await;
        let (mut nodes, mut pods) = (Vec::new(), Vec::new());
        for n in 0..2 {
            nodes.push(cluster.start(n).await);
            pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
        }
        let subnet = cluster.subnet(1);
        let gateway: IpAddr = match (subnet.ipv4(), subnet.ipv6()) {
            (Some(block), _) => block.nth(1).unwrap().into(),
            (None, block) => (u128::from(block.unwrap().network()) + 1).to_be_bytes().into(),
        };
        let family = if gateway.is_ipv4() { "ip" } else { "ip6" };
        let explain = format!(
            "{} explain {} {} --store {} --subnet-file {} || true",
            program().display(),
            pods[0].ip(),
            pods[1].ip(),
            cluster.store(),
            cluster.subnet_file(0).display()
        );
        // Between pods, to a host and from one.
        let paths = [
            (pods[0].endpoint(), pods[1].ip()),
            (pods[0].endpoint(), gateway),
            (cluster.host(0).endpoint(), pods[1].ip()),
        ];
        for row in &rows {
            for (from, to) in &paths {
                eventually(async || ping(from.clone(), *to, how).await.is_ok()).await;
            }
            let (hook, priority, rule) = (row[1], row[2], row[3]);
            let chain = format!("type filter hook {hook} priority {priority}; {rule}");
            for n in 0..2 {
                cluster
                    .shell(
                        n,
                        &format!("nft 'table {family} rules {{ chain {hook} {{ {chain}; }}; }}'"),
                    )
                    .await;
            }
            let mut dropped = [false; 3];
            // Limits drop the second.
            for (n, (from, to)) in paths.iter().enumerate().chain(paths.iter().enumerate()) {
                dropped[n] = dropped[n] || ping(from.clone(), *to, how).await.is_err();
            }
            let is_inner = rule.contains("ifname");
            let spared = is_inner && ["input", "output"].contains(&hook);
            let expected = [!spared, true, true].map(|drops| drops && row[column] == "drops");
            if row[1..4] == ["input", "filter", "udp dport { 8285, 8472, 51820 } drop"] {
                let explained = cluster.shell(0, &explain).await;
                let is_named = explained.contains("encapsulated, from");
                assert_eq!(is_named, dropped[0], "{explained}");
            }
            for n in 0..2 {
                cluster.shell(n, &format!("nft delete table {family} rules")).await;
            }
            if dropped != expected {
                wrong.push(format!("{rule} in {hook}, {name}, {family}: {dropped:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
