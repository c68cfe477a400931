//! What rules of a host do to the packets of a tunnel, outside and inside.

use std::time::Duration;

use flannel_testbed::probe::{Ping, ping};

use super::support::{Cluster, eventually, program};

/// The table of what is dropped: hook, priority and rule, and a cell for each of the networks.
const DOCUMENTED: &str = include_str!("../../../../docs/firewall.md");

/// Each rule, on both hosts, drops packets of some path, or of none, as documented in the columns with these heads.
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
        let gateway = cluster.subnet(1).ipv4().unwrap().nth(1).unwrap();
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
            (pods[0].endpoint(), gateway.into()),
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
                    .shell(n, &format!("nft 'table ip rules {{ chain {hook} {{ {chain}; }}; }}'"))
                    .await;
            }
            let mut found = "passes";
            // Limits drop the second.
            for (from, to) in paths.iter().chain(&paths) {
                if ping(from.clone(), *to, how).await.is_err() {
                    found = "drops";
                    break;
                }
            }
            if row[1..4] == ["input", "filter", "udp dport { 8285, 8472, 51820 } drop"] {
                let explained = cluster.shell(0, &explain).await;
                let is_named = explained.contains("encapsulated, from");
                assert_eq!(is_named, found == "drops", "{explained}");
            }
            for n in 0..2 {
                cluster.shell(n, "nft delete table ip rules").await;
            }
            if found != row[column] {
                wrong.push(format!("{rule} in {hook}, {name}: {found}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
