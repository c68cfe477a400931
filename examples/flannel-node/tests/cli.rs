//! What the program says to those who start it wrongly. Touches nothing.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::process::{Command, Output};

/// Runs the program, whose own files are in a folder that is gone afterwards, and stay out of it: nothing here becomes a node.
fn run(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("state"), folder.path().join("run/subnet.env"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    command.env("FLANNELD_STATE_DIR", &state).env("FLANNELD_SUBNET_FILE", run);
    command.args(args).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(!state.exists(), "{args:?} made {}", state.display());
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn an_unknown_flag_ends_with_2_and_the_usage() {
    let (code, stdout, stderr) = run(&["-no-such-flag"], &[]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("--no-such-flag") && stderr.contains("--help"), "{stderr}");
}

#[test]
fn a_wrong_value_names_the_flag_wherever_it_came_from() {
    for (args, environment) in
        [(&["-public-ip", "10.0.0"][..], &[][..]), (&[], &[("FLANNELD_PUBLIC_IP", "10.0.0")])]
    {
        let (code, _, stderr) = run(args, environment);
        assert_eq!(code, Some(2));
        assert!(stderr.contains("--public-ip"), "{stderr}");
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let (code, stdout, stderr) = run(&["--version"], &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(stdout, format!("flannel-node {}\n", env!("CARGO_PKG_VERSION")));
    let (code, stdout, _) = run(&["-help"], &[]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("--iface-can-reach"), "{stdout}");
}

#[test]
fn without_a_store_it_is_etcd_and_mistakes_there_are_named() {
    for (args, words) in [
        (&["-etcd-endpoints=ftp://192.0.2.1:2379"][..], "ftp://192.0.2.1:2379"),
        (&["-etcd-username=flannel"], "username is given without password"),
        (&["-etcd-cafile=/no/such/file", "-etcd-endpoints=https://127.0.0.1:1"], "/no/such/file"),
    ] {
        let (code, _, stderr) = run(args, &[]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
}

#[test]
fn a_bad_network_is_refused_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("net").display());
    for (network, words) in [
        ("10.3.0.0/29", "expected a block of /28 or larger"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen is 31, expected 18 to 30"),
    ] {
        let (code, _, stderr) = run(&["-store", &store, "-network", network], &[]);
        assert_eq!(code, Some(2));
        assert!(stderr.contains(words), "{stderr}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
    }
}

#[test]
fn an_unknown_backend_and_a_changed_network_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("net").display());
    let json = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"carrier-pigeon"}}"#;
    for network in [&["-network", json][..], &["-network=10.3.0.0/16", "-backend=vxln"]] {
        let (code, _, stderr) = run(&[&["-store", &store], network].concat(), &[]);
        assert_eq!(code, Some(2));
        assert!(
            stderr.contains("expected one of: alloc, extension, host-gw, udp, vxlan, wireguard"),
            "{stderr}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
    }
    let config = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let path = folder.path().join("net");
    runtime.block_on(flannel_store::FileStore::init(path, &config)).unwrap();
    let (code, _, stderr) = run(&["-store", &store, "-network", "10.4.0.0/16"], &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("holds another network"), "{stderr}");
}

#[test]
fn docker_is_told_in_the_flags_of_flannels_script() {
    let folder = tempfile::tempdir().unwrap();
    let [subnet, docker] = ["subnet.env", "docker.env"].map(|name| folder.path().join(name));
    std::fs::write(&subnet, "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\n").unwrap();
    let (subnet, out) = (format!("-f{}", subnet.display()), docker.display().to_string());
    let (code, stdout, stderr) = run(&["docker-opts", &subnet, "-d", &out, "-cmk", "KEY"], &[]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
    let expected = "KEY=\" --bip=10.1.74.1/24 --mtu=1472\"\n";
    assert_eq!(std::fs::read_to_string(&docker).unwrap(), expected);
    let (_, stdout, _) =
        run(&["docker-opts", &subnet, "-d", "/dev/stdout", "-c", "-k", "KEY"], &[]);
    assert_eq!(stdout, expected);
    let (code, _, stderr) = run(&["docker-opts", "-f", folder.path().to_str().unwrap()], &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot read"), "{stderr}");
}

/// Runs `args` on the store in `folder` and returns the exit code and what was said on either channel.
fn on(folder: &std::path::Path, args: &[&str]) -> (Option<i32>, String) {
    let store = format!("file:{}", folder.display());
    let (code, stdout, stderr) = run(args, &[("FLANNELD_STORE", &store)]);
    (code, stdout + &stderr)
}

#[test]
fn an_operator_sets_a_network_reserves_looks_and_releases() {
    let folder = tempfile::tempdir().unwrap();
    let on = |args: &[&str]| on(folder.path(), args);
    let network = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let (code, said) = on(&["config", "get"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no network config in"), "{said}");
    assert_eq!(on(&["config", "set", network]).0, Some(0));
    assert_eq!(on(&["config", "get"]), (Some(0), format!("{network}\n")));

    let reserve = ["leases", "reserve", "10.3.7.0-24", "--public-ip", "192.0.2.7"];
    assert_eq!(on(&reserve).0, Some(0));
    let value = "{\"PublicIP\":\"192.0.2.7\",\"PublicIPv6\":null}\n";
    assert_eq!(on(&["leases", "show", "10.3.7.0-24"]), (Some(0), value.into()));
    let (_, list) = on(&["leases", "list"]);
    let line = list.lines().nth(1).unwrap();
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["10.3.7.0-24", "-", "192.0.2.7", "-", "reserved"]
    );

    let (code, said) = on(&["leases", "reserve", "10.4.7.0-24", "--public-ip", "192.0.2.7"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("not a subnet that this network hands out"), "{said}");

    assert_eq!(on(&["leases", "release", "10.3.7.0-24"]).0, Some(0));
    let (code, said) = on(&["leases", "show", "10.3.7.0-24"]);
    assert_eq!((code, said.as_str()), (Some(1), "flannel-node: there is no lease 10.3.7.0-24\n"));
}

#[test]
fn a_network_that_would_orphan_leases_is_refused_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let on = |args: &[&str]| on(folder.path(), args);
    on(&["config", "set", r#"{"Network":"10.3.0.0/16"}"#]);
    on(&["leases", "reserve", "10.3.7.0-24", "--public-ip", "192.0.2.7"]);
    let moved = r#"{"Network":"10.4.0.0/16"}"#;
    let (code, said) = on(&["config", "set", moved]);
    assert_eq!(code, Some(1));
    assert!(said.contains("1 leases do not fit") && said.contains("10.3.7.0-24"), "{said}");
    assert_eq!(on(&["config", "set", moved, "--force"]).0, Some(0));
    assert_eq!(on(&["config", "get"]).1, format!("{moved}\n"));
}

#[test]
fn a_configuration_is_checked_without_a_store() {
    let (code, stdout, _) = run(&["config", "check", r#"{"network":"10.3.0.0/16"}"#], &[]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("\"SubnetMin\": \"10.3.1.0\""), "{stdout}");
    let (code, _, stderr) = run(&["config", "check", r#"{"Network":"10.3.0.0/30"}"#], &[]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("expected a block of /28 or larger"), "{stderr}");
}

#[test]
fn what_no_node_could_use_is_found_before_it_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let on = |args: &[&str]| on(folder.path(), args);
    for (backend, words) in [
        (r#"{"Type":"vxlan","VNI":16777216}"#, "VNI is 16777216, expected a whole number from 0"),
        (r#"{"Type":"udp","Port":0}"#, "Port is 0, expected a whole number from 1"),
        (r#"{"Type":"ipip"}"#, "expected one of: alloc, extension, host-gw, udp, vxlan, wireguard"),
        ("null", "Backend has no Type"),
    ] {
        let json = format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#);
        for command in ["check", "set"] {
            let (code, said) = on(&["config", command, &json]);
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains(words), "{said}");
            assert_eq!(said.contains("use --force"), command == "set", "{said}");
        }
        assert_ne!(on(&["config", "get"]).0, Some(0), "nothing is stored");
    }
    // A cluster may have nodes of another program only.
    let others = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"ipip"}}"#;
    assert_eq!(on(&["config", "set", others, "--force"]).0, Some(0));
    assert_eq!(on(&["config", "get"]).1, format!("{others}\n"));
}

#[test]
fn keys_that_nobody_reads_are_told() {
    for (backend, key) in [("vxlan", "Prot"), ("udp", "VNI"), ("host-gw", "DirectRouting")] {
        let json = format!(
            r#"{{"Network":"10.3.0.0/16","SubnetLenght":25,"Backend":{{"Type":"{backend}","{key}":1}}}}"#
        );
        let folder = tempfile::tempdir().unwrap();
        let store = format!("--store=file:{}", folder.path().display());
        for command in [&["config", "check", &json][..], &["config", "set", &json, &store]] {
            let (code, _, stderr) = run(command, &[]);
            assert_eq!(code, Some(0), "{stderr}");
            let lines: Vec<_> = stderr.lines().map(str::trim).collect();
            assert_eq!(
                lines,
                [
                    "WARN a network config has no such key key=\"SubnetLenght\"".to_owned(),
                    format!("WARN the {backend} backend has no such option key=\"{key}\""),
                ]
            );
        }
    }
    let known = r#"{"network":"10.3.0.0/16","subnetlen":25,"Backend":{"type":"vxlan","vni":7}}"#;
    assert_eq!(run(&["config", "check", known], &[]).2, "");
}

#[test]
fn a_public_address_that_no_peer_could_use_is_refused_before_anything_is_stored() {
    for address in ["0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "10.3.7.1"] {
        let folder = tempfile::tempdir().unwrap();
        let on = |args: &[&str]| on(folder.path(), args);
        let (code, said) = on(&["--network", "10.3.0.0/16", "--public-ip", address]);
        assert!(code.is_some_and(|code| code != 0), "{address}");
        assert!(
            said.contains(&format!("{address} cannot be this node's public address")),
            "{said}"
        );
        let (_, said) = on(&["config", "get"]);
        assert!(said.contains("no network config in"), "{address}: {said}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_fault() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    let output = command.arg("man").stdout(writer).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
}

#[test]
fn exit_codes_tell_what_is_not_fine_from_what_cannot_be_asked() {
    let (code, _, stderr) = run(&["explain", "10.3.0.1", "fd00::1"], &[]);
    assert_eq!(code, Some(2), "{stderr}");
    let (code, _, stderr) = run(&["status", "--subnet-file", "/no/such/subnet.env"], &[]);
    assert_eq!(code, Some(1), "{stderr}");
}
