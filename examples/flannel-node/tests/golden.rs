//! Help and errors, word for word. `UPDATE_GOLDEN=1 cargo test -p flannel-node --test golden` writes them anew.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flannel-node")).args(args).env_clear().output().unwrap()
}

fn shown(args: &[&str]) -> String {
    let Output { status, stdout, stderr } = run(args);
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let code = status.code().unwrap();
    format!(
        "$ flannel-node {}\n-- exit code {code}, standard output:\n{stdout}-- standard error:\n{stderr}",
        args.join(" ")
    )
}

#[track_caller]
fn assert_golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == expected, "{name} differs, now:\n{actual}");
}

#[test]
fn help_says_all_there_is() {
    assert_golden("help.txt", &shown(&["--help"]));
    assert_golden("help-short.txt", &shown(&["-h"]));
}

#[test]
fn help_is_a_command_too() {
    let help = |args: &[&str]| String::from_utf8(run(args).stdout).unwrap();
    assert_eq!(help(&["help"]), help(&["--help"]));
    for command in [
        &["demo"][..],
        &["docker-opts"],
        &["status"],
        &["teardown"],
        &["leases"],
        &["leases", "reserve"],
        &["config", "set"],
    ] {
        let asked = help(&[&["help"], command].concat());
        assert!(asked.contains("Usage: flannel-node"), "{asked}");
        assert_eq!(asked, help(&[command, &["--help"]].concat()));
    }
}

#[test]
fn mistakes_are_explained() {
    let mistakes: [&[&str]; 18] = [
        &["--no-such-flag"],
        &["--subnetfile=/x"],
        &["surplus"],
        &["--public-ip=10.0.0"],
        &["--ip-masq=perhaps"],
        &["-ip-masq", "true"],
        &["--subnet-lease-ttl=5"],
        &["--networks=10.3.0.0/16"],
        &["--network={\"Network\":\"10.3.0.0/33\"}", "--store=memory"],
        &["--healthz-port=http"],
        &["--subnet-lease-renew-margin=0"],
        &["--vmodule=node"],
        &["--iface-regex=("],
        &["--kube-subnet-mgr", "--store=memory"],
        &["--kube-subnet-mgr", "--kube-api-url=ftp://x"],
        &["--kube-subnet-mgr"],
        &["--store=redis:x"],
        &["--etcd-endpoints=ftp://192.0.2.1:2379"],
    ];
    let shown: Vec<_> = mistakes.iter().map(|args| shown(args)).collect();
    for text in &shown {
        assert!(text.contains("exit code 2, standard output:\n-- standard error"), "{text}");
    }
    assert_golden("mistakes.txt", &shown.join("\n"));
}

#[test]
fn completions_and_the_manual_page_know_every_flag() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    let options = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let words = options.flat_map(|line| line.split([' ', '=', '[', ',']).take(3));
    let flags: Vec<_> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(flags.len() > 31, "{flags:?}");
    let said = |args: &[&str]| {
        let Output { status, stdout, stderr } = run(args);
        assert!(status.success() && stderr.is_empty());
        String::from_utf8(stdout).unwrap()
    };
    let page = said(&["man"]).replace("\\-", "-");
    let (bash, zsh) = (said(&["completions", "bash"]), said(&["completions", "zsh"]));
    for flag in flags {
        for (text, what) in [(&page, "the manual page"), (&bash, "bash"), (&zsh, "zsh")] {
            assert!(text.contains(flag), "{what} does not know {flag}");
        }
    }
}
