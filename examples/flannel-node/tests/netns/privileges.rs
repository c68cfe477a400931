//! A node with as few rights as it needs.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command,
    time::Duration,
};

use flannel_testbed::{Process, eventually, probe};

use super::support::{Cluster, HOST_GW, VXLAN, asked, program};

/// `CAP_NET_ADMIN` of linux/capability.h, as the kernel shows it.
const NET_ADMIN: &str = "0000000000001000";

/// The same with `CAP_NET_RAW`.
const NET_ADMIN_AND_RAW: &str = "0000000000003000";

/// What the kernel says about a process.
fn status(process: &Process) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{}/status", process.pid().unwrap())).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

/// The command under setpriv(1) with these options, and with no capability but `CAP_NET_ADMIN`.
fn with_few_rights(command: &Command, options: &[&str]) -> Command {
    let mut few = Command::new("setpriv");
    few.args(["--no-new-privs", "--bounding-set=-all,+net_admin"]).args(options);
    few.args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--"]);
    few.arg(command.get_program()).args(command.get_args());
    few
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_gives_up_what_it_does_not_need_and_says_so() {
    let cluster = Cluster::new(2, VXLAN).await;
    let (nodes, _pods) = cluster.start_all().await;
    let status = status(&nodes[0]);
    // Legacy iptables talks to the kernel through a raw socket.
    let needed = if flannel_firewall::needs_net_raw() { NET_ADMIN_AND_RAW } else { NET_ADMIN };
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert_eq!(status[set], needed, "{set}");
    }
    assert_eq!(status["NoNewPrivs"], "1");
    assert!(cluster.state_folder(0).join("node-id").exists());
    let output = nodes[0].output();
    let says: Vec<_> = output.iter().filter(|line| line.contains(" sandbox ")).collect();
    let [says] = says[..] else { panic!("not one line: {output:?}") };
    for words in ["capabilities=net_admin", "new_privileges=\"none\"", "restricted by Landlock"] {
        assert!(says.contains(words), "{says}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_sandbox_can_be_switched_off() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let mut command = cluster.command(program(), 0);
    command.arg("--sandbox=off");
    let node = cluster.run(0, command).await;
    assert_ne!(status(&node)["CapEff"], NET_ADMIN);
    assert_eq!(status(&node)["NoNewPrivs"], "0");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn one_capability_is_enough_for_all_it_does() {
    for network in [VXLAN, HOST_GW] {
        let cluster = Cluster::new(2, network).await;
        let (mut nodes, mut pods) = (Vec::new(), Vec::new());
        for n in 0..2 {
            let mut command = cluster.command(program(), n);
            command.arg("--sandbox=off");
            nodes.push(cluster.run(n, with_few_rights(&command, &[])).await);
            assert_eq!(status(&nodes[n])["CapBnd"], NET_ADMIN);
            pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
        }
        eventually(async || probe::reachability(&pods).await.complete()).await;
        // Repair, and the way back after a restart, need nothing else.
        cluster.host(0).delete_route(cluster.subnet(1)).await.unwrap();
        eventually(async || probe::reachability(&pods).await.complete()).await;
        nodes[0].kill().unwrap();
        nodes[0].wait().await.unwrap();
        let _again = cluster.run(0, with_few_rights(&cluster.command(program(), 0), &[])).await;
        assert!(probe::reachability(&pods).await.complete());
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn without_the_capability_it_is_told_what_is_missing() {
    let cluster = Cluster::new(1, VXLAN).await;
    let command = cluster.command(program(), 0);
    let mut none = Command::new("setpriv");
    none.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    none.arg(command.get_program()).args(command.get_args());
    let mut node = cluster.host(0).spawn(none).unwrap();
    let said = |line: &str| line.contains("CAP_NET_ADMIN is missing");
    node.line(Duration::from_secs(10), said).await.unwrap();
}

/// The command where nobody can write kernel settings, as in most containers.
fn with_settings_read_only(command: &Command) -> Command {
    let mut read_only = Command::new("unshare");
    let mount =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    read_only.args(["--mount", "sh", "-c", mount, "sh"]);
    read_only.arg(command.get_program()).args(command.get_args());
    read_only
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn settings_that_are_right_may_be_read_only() {
    for network in [HOST_GW, VXLAN] {
        let cluster = Cluster::new(1, network).await;
        cluster.shell(0, "echo 1 > /proc/sys/net/ipv4/ip_forward").await;
        let mut command = cluster.command(program(), 0);
        command.arg("--ip-masq");
        let node = cluster.run(0, with_settings_read_only(&command)).await;
        let said = node.output();
        let troubles: Vec<_> = said.iter().filter(|line| line.contains(" WARN ")).collect();
        let about = |line: &&&String| line.contains("forward") && line.contains("cannot");
        assert_eq!(troubles.iter().filter(about).count(), 0, "{troubles:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn settings_that_are_wrong_and_read_only_are_named_until_somebody_sets_them() {
    let cluster = Cluster::new(1, HOST_GW).await;
    cluster.shell(0, "echo 0 > /proc/sys/net/ipv4/ip_forward").await;
    let command = with_settings_read_only(&cluster.command(program(), 0));
    let mut node = cluster.host(0).spawn(command).unwrap();
    let named = |line: &str| {
        ["cannot set net.ipv4.ip_forward: Read-only file system", "sysctl -w net.ipv4.ip_forward=1"]
            .iter()
            .all(|words| line.contains(words))
    };
    node.line(Duration::from_secs(20), named).await.unwrap();
    let socket = cluster.subnet_file(0).with_extension("sock");
    let (code, says) = asked(&socket, "/readyz");
    assert_eq!(code, 503);
    assert!(says.contains("firewall: cannot set net.ipv4.ip_forward"), "{says}");
    cluster.shell(0, "echo 1 > /proc/sys/net/ipv4/ip_forward").await;
    eventually(async || asked(&socket, "/readyz").0 == 200).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn others_may_read_the_subnet_file_whatever_the_umask() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let command = cluster.command(program(), 0);
    let mut strict = Command::new("sh");
    strict.args(["-c", "umask 077; exec \"$@\"", "sh"]);
    strict.arg(command.get_program()).args(command.get_args());
    let _node = cluster.run(0, strict).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = cluster.subnet_file(0);
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o644, 0o755));
    assert_eq!(mode(&file.with_extension("sock")), 0o600);
}
