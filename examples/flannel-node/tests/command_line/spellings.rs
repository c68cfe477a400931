//! What is made of command lines and environments.

use std::{ffi::OsString, path::PathBuf};

use clap::CommandFactory;

use crate::args::*;

pub(crate) fn read(args: &[&str], environment: &[(&str, &str)]) -> Result<Cli, clap::Error> {
    let args = ["flannel-node"].iter().chain(args).map(OsString::from);
    Cli::read(args, |name| {
        environment.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
    })
}

pub(crate) fn node(args: &[&str], environment: &[(&str, &str)]) -> NodeArgs {
    read(args, environment).unwrap().node
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_spelling_of_a_flag_is_read() {
    for args in [
        &["-subnet-file", "/x"][..],
        &["--subnet-file", "/x"],
        &["-subnet-file=/x"],
        &["--subnet-file=/x"],
    ] {
        assert_eq!(node(args, &[]).subnet_file, PathBuf::from("/x"), "{args:?}");
    }
    let args = node(&["-iface=eth0", "--iface", "192.0.2.1", "-v=2"], &[]);
    assert_eq!((args.iface, args.log.v), (vec!["eth0".to_string(), "192.0.2.1".into()], 2));
    assert_eq!(node(&["-v", "3"], &[]).log.v, 3);
}

#[test]
fn the_environment_speaks_where_the_command_line_does_not() {
    let environment = [
        ("FLANNELD_SUBNET_FILE", "/env"),
        ("FLANNELD_IFACE", "eth1"),
        ("FLANNELD_V", "2"),
        ("FLANNELD_PUBLIC_IP", ""),
        ("FLANNELD_VERSION", "true"),
    ];
    let args = node(&["-subnet-file", "/line"], &environment);
    assert_eq!(args.subnet_file, PathBuf::from("/line"));
    assert_eq!(args.iface, ["eth1"]);
    assert_eq!((args.log.v, args.public_ip), (2, None));
}

#[test]
fn the_command_line_wins_over_what_does_not_go_with_it() {
    for (variable, line, said) in [
        (
            "FLANNELD_NET_CONFIG_PATH=/x",
            &["--kube-subnet-mgr", "--net-config-map=a/b"][..],
            "beside --net-config-map",
        ),
        ("FLANNELD_STORE=file:/x", &["--kube-subnet-mgr"], "beside --kube-subnet-mgr"),
        ("FLANNELD_KUBE_SUBNET_MGR=true", &["--store=file:/x"], "beside --store"),
        ("FLANNELD_BACKEND=host-gw", &[], "without --network"),
    ] {
        let args = node(line, &[variable.split_once('=').unwrap()]);
        let name = variable.split_once('=').unwrap().0;
        let expected = format!("{name}: it is ignored {said}");
        assert!(args.without_effect().contains(&expected), "{:?}", args.without_effect());
    }
    let network = ("FLANNELD_NETWORK", "10.3.0.0/16");
    let args = node(&[], &[("FLANNELD_BACKEND", "host-gw"), network]);
    assert_eq!(args.backend, "host-gw");
    assert!(read(&["demo"], &[("FLANNELD_BACKEND", "host-gw")]).is_ok());
}

#[test]
fn etcd_has_flanneld_s_options_and_defaults() {
    let etcd = node(&[], &[]).store.etcd();
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(etcd.prefix, "/coreos.com/network");
    let environment = [("FLANNELD_ETCD_PASSWORD", "hunter2"), ("FLANNELD_ETCD_USERNAME", "f")];
    let args = node(&["-etcd-endpoints=https://a:1,https://b:2"], &environment);
    assert_eq!(args.store.etcd().endpoints, ["https://a:1", "https://b:2"]);
    assert!(args.store.etcd().password.is_some());
    assert!(!format!("{args:?}").contains("hunter2"));
}

#[test]
fn commands_take_the_environment_too() {
    let environment = [("FLANNELD_STORE", "file:/x"), ("FLANNELD_SUBNET_FILE", "/y")];
    let cli = read(&["leases", "show", "10.3.7.0-24"], &environment).unwrap();
    let Some(Command::Leases(LeasesCommand::Show { key, store })) = cli.command else {
        panic!("another command");
    };
    assert_eq!(key, "10.3.7.0-24".parse().unwrap());
    assert_eq!(store.options().to_string(), "file:/x");
}

#[test]
fn mistakes_name_the_flag_and_end_with_2() {
    for (args, words) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["-public-ip", "10.0.0"], "--public-ip"),
        (&["--network", "10.0.0.0"], "expected a block such as 10.244.0.0/16"),
        (&["--node-id", "a b"], "cannot be a node id"),
        (&["demo", "--hosts", "1"], "expected a number from 2 to 50"),
        (&["surplus"], "surplus"),
        (&["-iface-regex", "("], "expected a regular expression such as"),
        (&["-iface-can-reach", "x"], "expected an address such as 192.0.2.1 or 2001:db8::1"),
        (&["-public-ip", "2001:db8::1"], "expected an IPv4 address such as 192.0.2.1"),
        (&["-public-ipv6", "192.0.2.1"], "expected an IPv6 address such as 2001:db8::1"),
        (&["-healthz-port", "65536"], "expected a number from 0 to 65535"),
        (&["-iptables-resync=86401"], "expected a number from 1 to 86400"),
        (&["-iptables-forward-rules=perhaps"], "expected true or false"),
        (&["-subnet-lease-renew-margin", "1440"], "expected a number from 1 to 1439"),
        (&["-vmodule", "node"], "expected patterns with levels"),
        (&["-kube-subnet-mgr", "-store=memory"], "leave one of the two out"),
        (&["-kube-subnet-mgr", "-network=10.3.0.0/16"], "is the file of --net-config-path"),
        (&["-kube-subnet-mgr", "-node-id=a"], "which NODE_NAME says"),
        (&["-net-config-map=x"], "expected a namespace and a name such as"),
    ] {
        let error = read(args, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{args:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = read(&[], &[("FLANNELD_PUBLIC_IP", "x")]).unwrap_err();
    assert!(error.to_string().contains("--public-ip"), "{error}");
}

#[test]
fn help_and_version_are_no_mistakes() {
    for args in [["--help"], ["-help"], ["-h"], ["--version"], ["-version"]] {
        assert_eq!(read(&args, &[]).unwrap_err().exit_code(), 0, "{args:?}");
    }
}

#[test]
fn what_flanneld_ignores_is_ignored_with_a_word() {
    let args = node(&["--version=false", "-healthz-ip=", "-subnet-file", ""], &[]);
    assert_eq!(args.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    let args = node(&["-etcd-cafile=/ca.pem", "-iptables-resync=0", "-healthz-port=-1"], &[]);
    assert_eq!((args.store.etcd().ca, args.health.address()), (None, None));
    let said = args.without_effect().join("\n");
    for flag in ["--etcd-cafile: ", "--iptables-resync: ", "--healthz-port: "] {
        assert!(said.contains(flag), "{said}");
    }
    let encrypted = ["-etcd-cafile=/ca.pem", "-etcd-endpoints=https://192.0.2.1:2379"];
    assert!(node(&encrypted, &[]).store.etcd().ca.is_some());
    let args = node(&[], &[("FLANNELD_IP_MASQ", "maybe"), ("FLANNELD_HEALTHZ_PORT", "x")]);
    assert!(!args.traffic.ip_masq);
    let said = args.without_effect().join("\n");
    assert!(said.contains("FLANNELD_IP_MASQ is \"maybe\", expected true or false"), "{said}");
    assert!(said.contains("FLANNELD_HEALTHZ_PORT is \"x\", expected a whole number"), "{said}");
}

#[test]
fn stores_and_networks_are_read() {
    let args = node(&["-store", "file:/var/lib/x", "-network", "10.3.0.0/16"], &[]);
    assert_eq!(args.store.options().to_string(), "file:/var/lib/x");
    let network = args.options().unwrap().network.unwrap();
    assert_eq!(network.backend().kind(), "vxlan");
    let json = r#"{"Network":"10.3.0.0/16"}"#;
    let args = node(&["-store=memory", "-network", json], &[]);
    assert_eq!(args.store.options().name, "memory");
    assert_eq!(args.options().unwrap().network, Some(json.parse().unwrap()));
}

#[test]
fn teardown_takes_the_network_of_a_nodes_environment() {
    let json = r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#;
    for value in [json, "10.3.0.0/16,fd00:3::/48"] {
        let cli = read(&["teardown"], &[("FLANNELD_NETWORK", value)]).unwrap();
        let Some(Command::Teardown(args)) = cli.command else { panic!("another command") };
        let blocks = ["10.3.0.0/16", "fd00:3::/48"].map(|block| block.parse().unwrap());
        assert_eq!(args.options().network, blocks);
    }
}

#[test]
fn a_file_speaks_where_neither_command_line_nor_environment_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "FLANNELD_SUBNET_FILE=/file\nFLANNELD_IFACE=eth9\nFLANNELD_STATE_DIR=/state\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let environment = [("FLANNELD_SUBNET_FILE", "/env")];
    let args = node(&["-env-file", path, "-iface=eth0"], &environment);
    assert_eq!((args.subnet_file, args.iface), ("/env".into(), vec!["eth0".to_owned()]));
    assert_eq!(args.state_dir, Some("/state".into()));
    let args = node(&[], &[("FLANNELD_ENV_FILE", path)]);
    assert_eq!(args.iface, ["eth9"]);
    let error = read(&["--env-file=/no/such/file"], &[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("cannot read /no/such/file"), "{error}");
}

#[test]
fn install_conf_is_a_name_of_the_program() {
    for args in
        [&["/opt/bin/install-conf", "a", "b"][..], &["flannel-node", "install-conf", "a", "b"]]
    {
        let cli = Cli::read(args.iter().map(OsString::from), |_| None).unwrap();
        let Some(Command::InstallConf(args)) = cli.command else { panic!("{args:?}") };
        assert_eq!([args.source, args.destination], ["a", "b"].map(PathBuf::from));
    }
    let error = Cli::read(["install-conf", "a"].map(OsString::from), |_| None).unwrap_err();
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn kubectl_runs_the_program_by_a_name_of_its_own() {
    for args in [
        &["/usr/bin/kubectl-flannel", "bench", "a", "b", "-n", "x"][..],
        &["flannel-node", "kubectl", "bench", "a", "b", "--namespace=x"],
    ] {
        let cli = Cli::read(args.iter().map(OsString::from), |_| None).unwrap();
        let Some(Command::Kubectl(KubectlCommand::Bench(args))) = cli.command else {
            panic!("{args:?}")
        };
        assert_eq!([args.options().from, args.options().to], ["a", "b"]);
    }
}

/// An operator's shell may have the node's variables, or be given its file.
#[test]
fn variables_of_a_node_are_good_for_every_command() {
    let of_node = [
        ("FLANNELD_REQUIRE_ENCRYPTION", "true"),
        ("FLANNELD_NETWORK", r#"{"Network":"10.3.0.0/16"}"#),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_RELEASE", "true"),
        ("FLANNELD_HELP", "true"),
    ];
    for command in [
        &["teardown"][..],
        &["teardown", "--keep-traffic"],
        &["explain", "10.3.1.2", "10.3.2.2"],
        &["leases", "list"],
        &["config", "get"],
        &["config", "set", "{}"],
        &["status"],
        &["demo"],
    ] {
        let cli = read(command, &of_node).unwrap();
        let Some(Command::Teardown(args)) = cli.command else { continue };
        assert!(args.require_encryption && !args.release);
    }
}
