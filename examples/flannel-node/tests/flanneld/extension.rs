//! The extension backend: both programs run the same commands and tell them the same.

use std::{fs, os::unix::fs::PermissionsExt};

use flannel_testbed::eventually;

use super::support::Cluster;

/// flanneld splits a command at white space and expands variables; with a script both do the same.
const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"extension",
    "PreStartupCommand":"DIR/script pre",
    "PostStartupCommand":"DIR/script post $SUBNET ${NETWORK}",
    "SubnetAddCommand":"DIR/script add $SUBNET ${PUBLIC_IP}",
    "SubnetRemoveCommand":"DIR/script remove $SUBNET"}}"#;

/// Writes down what it is given, for each host in a file of its own. What it prints is the node's BackendData.
const SCRIPT: &str = r#"#!/bin/sh
{
    echo "[$*] NETWORK=$NETWORK SUBNET=$SUBNET PUBLIC_IP=$PUBLIC_IP"
    sed 's/^/stdin: /'
} >> "$RECORD"
echo "data of \"$NAME\" <&>"
echo "and an error" >&2
"#;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn both_run_the_same_commands_with_the_same_environment_and_input() {
    let cluster = Cluster::new(2, NETWORK).await;
    let script = cluster.folder.path().join("script");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let record = |n: usize| cluster.folder.path().join(format!("run{n}.record"));
    let read = |n: usize| fs::read_to_string(record(n)).unwrap_or_default();

    let mut theirs = cluster.theirs(0);
    theirs.env("RECORD", record(0)).env("NAME", "host");
    let _theirs =
        flannel_testbed::Flanneld::start(cluster.host(0), theirs, &cluster.subnet_file(0)).await;
    let _theirs = _theirs.unwrap();
    let mut ours = cluster.ours(1);
    // The record is in a folder that the sandbox does not know.
    ours.arg("--sandbox=off").env("RECORD", record(1)).env("NAME", "host");
    let mut ours = cluster.host(1).spawn(ours).unwrap();
    let ready = |line: &str| line.contains(" ready subnet=");
    ours.line(std::time::Duration::from_secs(60), ready).await.unwrap();

    let lease = async |n: usize| {
        let block = cluster.subnet(n).ipv4().unwrap();
        let key = format!("/coreos.com/network/subnets/{}-{}", block.network(), block.prefix());
        cluster.etcd.ctl(&["get", "--print-value-only", &key]).await.unwrap()
    };
    let third = "/coreos.com/network/subnets/10.244.0.0-24";
    let value = r#"{"PublicIP":"192.0.2.200","PublicIPv6":null,"BackendType":"extension","BackendData":"$(reboot) `reboot`; \"'\\\nline"}"#;
    cluster.etcd.ctl(&["put", third, value]).await.unwrap();
    eventually(async || (0..2).all(|n| read(n).contains("add 10.244.0.0/24"))).await;
    eventually(async || (0..2).all(|n| read(n).matches("[add ").count() == 2)).await;
    cluster.etcd.ctl(&["del", third]).await.unwrap();
    eventually(async || (0..2).all(|n| read(n).contains("remove 10.244.0.0/24"))).await;
    eventually(async || (0..2).all(|n| read(n).ends_with("line\n") || read(n).ends_with("\\\n")))
        .await;

    // The same lease but for the address, and the same records but for who is the other.
    let (first, second) = (cluster.subnet(0).to_string(), cluster.subnet(1).to_string());
    let exchanged = |text: &str| {
        let own = [(first.as_str(), "OWN"), (second.as_str(), "OTHER")];
        let own = own.into_iter().chain([("192.0.2.1", "OWN_IP"), ("192.0.2.2", "OTHER_IP")]);
        own.fold(text.to_owned(), |text, (from, to)| replace_word(&text, from, to))
    };
    let theirs = exchanged(&lease(0).await).replace("OWN", "X");
    assert_eq!(exchanged(&lease(1).await).replace("OTHER", "X"), theirs);
    let theirs = exchanged(&read(0));
    let ours = exchanged(&read(1));
    let ours = ours.replace("OWN", "SELF").replace("OTHER", "OWN").replace("SELF", "OTHER");
    let sorted = |text: &str| {
        let mut runs: Vec<_> = text
            .split("\n[")
            .map(|run| run.trim_start_matches('[').trim_end().to_owned())
            .collect();
        runs.sort();
        runs
    };
    assert_eq!(sorted(&ours), sorted(&theirs), "ours:\n{ours}\ntheirs:\n{theirs}");
}

/// Replaces `from` where no digit goes on.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let mut parts = text.split(from);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let goes_on = part.starts_with(|c: char| c.is_ascii_digit());
        replaced += if goes_on { from } else { to };
        replaced += part;
    }
    replaced
}
