//! What the program says to those who start it wrongly. Touches nothing.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::process::{Command, Output};

fn run(args: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    command.args(args).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
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
fn without_a_store_the_error_says_what_flanneld_would_do_and_what_there_is() {
    let (code, _, stderr) = run(&[], &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("etcd") && stderr.contains("--store file:FOLDER"), "{stderr}");
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
        assert_eq!(code, Some(1));
        assert!(stderr.contains(words), "{stderr}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
    }
}

#[test]
fn an_unknown_backend_and_a_changed_network_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().display());
    let network = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"carrier-pigeon"}}"#;
    let (code, _, stderr) = run(&["-store", &store, "-network", network], &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("\"carrier-pigeon\", expected one of: host-gw"), "{stderr}");
    let (code, _, stderr) = run(&["-store", &store, "-network", "10.4.0.0/16"], &[]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("holds another network"), "{stderr}");
}
