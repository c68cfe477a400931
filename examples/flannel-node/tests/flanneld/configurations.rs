//! Texts of a network's configuration: what flanneld starts with is taken, and what it refuses is refused.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

use std::{process::Command, time::Duration};

use flannel_testbed::Flanneld;

use super::support::Cluster;

/// What a program does with a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Refused,
    Taken,
}

use Outcome::{Refused, Taken};

/// Texts, with the reason why ours does otherwise where it does.
const TEXTS: &[(&str, &str)] = &[
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"network":"10.1.0.0/16","BACKEND":{"type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.2.3/16","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"ALLOC"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc","More":1},"More":[2]}"#, ""),
    (r#"{"Network":"10.9.0.0/16","Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#, ""),
    (r#" { "Network" : "10.1.0.0/16" , "Backend" : { "Type" : "alloc" } } "#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}} x"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"nothing"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":""}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":null}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":[]}"#, ""),
    (r#"{"Network":"10.1.0.0/16","Backend":{"Type":7}}"#, ""),
    (r#"{}"#, ""),
    (r#"[]"#, ""),
    (r#""10.1.0.0/16""#, ""),
    (r#"null"#, ""),
    (r#"{"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":null,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/33","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"0.0.0.0/0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"fd00::/48","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/28","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/29","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/22","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":0,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":17,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":18,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":30,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":31,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":-1,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":"24","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":24.0,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetLen":null,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.7.0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.7.1","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":"0.0.0.0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":null,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMin":"","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.7.0","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMax":"10.1.7.9","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","SubnetMax":"10.0.7.0","Backend":{"Type":"alloc"}}"#, ""),
    (
        r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.7.0","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (r#"{"Network":"10.1.0.0/16","EnableIPv4":false,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","EnableIPv4":"yes","Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","EnableIPv4":null,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","EnableNFTables":1,"Backend":{"Type":"alloc"}}"#, ""),
    (r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"Backend":{"Type":"alloc"}}"#, ""),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/124","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/125","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":64,"Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":49,"Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd00:0:0:7::","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (
        r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetMin":"fd01::","Backend":{"Type":"alloc"}}"#,
        "",
    ),
    (r#"{"Network":"10.1.0.0/16","IPv6Network":"nonsense","Backend":{"Type":"alloc"}}"#, ""),
];

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn configurations_are_taken_and_refused_as_flanneld_does() {
    let cluster = Cluster::new(1, "{}").await;
    let (mut different, mut taken) = (Vec::new(), 0);
    for (n, (text, reason)) in TEXTS.iter().enumerate() {
        let prefix = format!("/{n}");
        cluster.etcd.ctl(&["put", &format!("{prefix}/config"), text]).await.unwrap();
        let theirs = theirs(&cluster, &prefix).await;
        taken += usize::from(theirs == Taken);
        let mut check = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        check.args(["config", "check", text]);
        let ours = if cluster.host(0).run(check).await.is_ok() { Taken } else { Refused };
        if (ours != theirs) == reason.is_empty() {
            different.push(format!("{text}: flanneld {theirs:?}, ours {ours:?}; {reason}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    // Neither program just says the same to everything.
    assert!((20..TEXTS.len() - 20).contains(&taken), "{taken} of {} were taken", TEXTS.len());
}

async fn theirs(cluster: &Cluster, prefix: &str) -> Outcome {
    let file = cluster.folder.path().join("subnet.env");
    let _ = std::fs::remove_file(&file);
    let mut command = Flanneld::command(cluster.etcd.url(), &file).unwrap();
    command.arg(format!("-etcd-prefix={prefix}")).arg("-iptables-forward-rules=false");
    let mut process = cluster.host(0).spawn(command).unwrap();
    // It asks again and again for a configuration that it cannot read.
    let decided = |line: &str| {
        line.contains("Wrote subnet file to") || line.contains("Couldn't fetch network config")
    };
    // Without either it has ended.
    match process.line(Duration::from_secs(60), decided).await {
        Ok(line) if line.contains("Wrote subnet file to") => Taken,
        _ => Refused,
    }
}
