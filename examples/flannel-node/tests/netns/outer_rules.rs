//! What rules of a host do to the packets of a tunnel, outside and inside.

use std::time::Duration;

use flannel_testbed::probe::{Ping, ping};

use super::support::{Cluster, VXLAN, program};

/// The table of what is dropped: hook, priority and rule, and a cell for each of the networks.
const DOCUMENTED: &str = include_str!("../../../../docs/firewall.md");

/// Each rule, on both hosts, drops packets of some path, or of none, as documented.
pub(crate) async fn are_obeyed_as_documented(userspace: &'static str, ebpf: &'static str) {
    let rows: Vec<Vec<&str>> = DOCUMENTED
        .lines()
        .filter(|line| line.ends_with("| drops |") || line.ends_with("| passes |"))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert!(rows.len() > 8, "{rows:?}");
    let how = Ping::default().timeout(Duration::from_millis(300));
    let mut wrong = Vec::new();
    for (column, network) in [(4, VXLAN), (5, userspace), (6, ebpf)] {
        let cluster = Cluster::new(2, network).await;
        let (_nodes, pods) = cluster.start_all().await;
        let gateway = cluster.subnet(1).ipv4().unwrap().nth(1).unwrap();
        let explain = format!(
            "{} explain {} {} --store {} --subnet-file {} || true",
            program().display(),
            pods[0].ip(),
            pods[1].ip(),
            cluster.store(),
            cluster.subnet_file(0).display()
        );
        for row in &rows {
            let (hook, priority, rule) = (row[1], row[2], row[3]);
            let chain = format!("type filter hook {hook} priority {priority}; {rule}");
            for n in 0..2 {
                cluster
                    .shell(n, &format!("nft 'table ip rules {{ chain {hook} {{ {chain}; }}; }}'"))
                    .await;
            }
            // Between pods, to a host and from one; limits drop the second.
            let paths = [
                (pods[0].endpoint(), pods[1].ip()),
                (pods[0].endpoint(), gateway.into()),
                (cluster.host(0).endpoint(), pods[1].ip()),
            ];
            let mut found = "passes";
            for (from, to) in paths.iter().chain(&paths) {
                if ping(from.clone(), *to, how).await.is_err() {
                    found = "drops";
                    break;
                }
            }
            if row[1..4] == ["input", "filter", "udp dport { 8285, 8472 } drop"] {
                let explained = cluster.shell(0, &explain).await;
                let is_named = explained.contains("encapsulated, from");
                assert_eq!(is_named, found == "drops", "{explained}");
            }
            for n in 0..2 {
                cluster.shell(n, "nft delete table ip rules").await;
            }
            if found != row[column] {
                wrong.push(format!("{rule} in {hook}, column {column}: {found}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
