//! Options: a unit file that works with flanneld works with this program.

use std::{process::Command, time::Duration};

use super::support::{Cluster, ipv4};

/// Arguments and variables, and whether flanneld starts with them.
type Start = (&'static [&'static str], &'static [(&'static str, &'static str)], bool);

/// What flanneld was started with. `DIR` is a folder.
const STARTS: &[Start] = &[
    (&["-etcd-cafile=DIR/none"], &[], true),
    (&["-etcd-keyfile=DIR/none"], &[], true),
    (&["-etcd-certfile=DIR/none"], &[], true),
    (&["-iptables-resync=0"], &[], true),
    (&["-iptables-resync=-7"], &[], true),
    (&["-iptables-resync=x"], &[], false),
    (&["-healthz-port=-1"], &[], true),
    (&["-healthz-port=0"], &[], true),
    (&["-healthz-ip=", "-healthz-port=18471"], &[], true),
    (&["-version=false"], &[], true),
    (&["-public-ip="], &[], true),
    (&["-public-ip=nonsense"], &[], false),
    (&["-iface-can-reach="], &[], true),
    (&["-ip-masq"], &[], true),
    (&["-ip-masq=T"], &[], true),
    (&["-ip-masq=yes"], &[], false),
    (&["-ip-masq", "-ip-masq-fully-random-disable=true"], &[], true),
    (&["-ip-blackhole-route=false"], &[], true),
    (&["-iptables-forward-rules=0"], &[], true),
    (&["-subnet-lease-renew-margin=0"], &[], false),
    (&["-subnet-lease-renew-margin=1439"], &[], true),
    (&["-subnet-lease-renew-margin=1440"], &[], false),
    (&["-kube-subnet-mgr=false"], &[], true),
    (&["-kube-api-url=https://192.0.2.1"], &[], true),
    (&["-kube-annotation-prefix="], &[], true),
    (&["-net-config-path="], &[], true),
    (&["-set-node-network-unavailable=false"], &[], true),
    (&["-v=10"], &[], true),
    (&["-vmodule=etcd=2"], &[], true),
    (&["-no-such-option"], &[], false),
    (&[], &[("FLANNELD_IP_MASQ", "nonsense")], true),
    (&[], &[("FLANNELD_HEALTHZ_PORT", "nonsense")], true),
    (&[], &[("FLANNELD_IPTABLES_RESYNC", "5s")], true),
    (&[], &[("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "1h")], false),
    (&[], &[("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "0")], false),
    (&[], &[("FLANNELD_NO_SUCH", "x")], true),
    (&[], &[("FLANNELD_PUBLIC_IP", "")], true),
];

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn what_flanneld_starts_with_starts_this_program() {
    let cluster = Cluster::new(2, &ipv4("alloc")).await;
    let folder = cluster.folder.path().display().to_string();
    let mut different = Vec::new();
    for (arguments, variables, starts) in STARTS {
        let with = |mut command: Command| {
            command.args(arguments.iter().map(|it| it.replace("DIR", &folder)));
            command.envs(variables.iter().copied());
            command
        };
        let (theirs, ours) = tokio::join!(
            does(&cluster, 0, with(cluster.theirs(0)), "Wrote subnet file to"),
            does(&cluster, 1, with(cluster.ours(1)), " ready subnet="),
        );
        if (theirs, ours) != (*starts, *starts) {
            different.push(format!("{arguments:?} {variables:?}: flanneld {theirs}, ours {ours}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Whether the program gets as far as `line`, and does not end before.
async fn does(cluster: &Cluster, host: usize, command: Command, line: &str) -> bool {
    let mut process = cluster.host(host).spawn(command).unwrap();
    process.line(Duration::from_secs(60), |it| it.contains(line)).await.is_ok()
}
