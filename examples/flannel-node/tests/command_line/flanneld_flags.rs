//! The flags of flanneld, one by one.

use std::{ffi::OsStr, path::PathBuf};

use clap::{Arg, ArgAction, CommandFactory};

use crate::{
    args::*,
    spellings::{node, read},
};

/// One line of the committed list.
struct Flag {
    name: &'static str,
    variable: Option<&'static str>,
    default: Option<&'static str>,
    kind: &'static str,
}

fn variable(flag: &str) -> String {
    format!("FLANNELD_{}", flag.to_uppercase().replace('-', "_"))
}

fn flags() -> Vec<Flag> {
    let list = include_str!("../fixtures/flanneld-flags.tsv");
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let fields =
        lines.map(|line| <[&str; 4]>::try_from(line.split('\t').collect::<Vec<_>>()).unwrap());
    let given = |text: &'static str| (text != "-").then_some(text);
    fields
        .map(|[name, variable, default, kind]| Flag {
            name,
            variable: given(variable),
            default: given(default),
            kind,
        })
        .collect()
}

fn kind(arg: &Arg) -> &'static str {
    let switch = arg.get_num_args().is_some_and(|number| number.min_values() == 0);
    match arg.get_action() {
        ArgAction::Version => "bool",
        ArgAction::Append if arg.get_value_delimiter().is_none() => "list",
        _ if switch => "bool",
        _ => {
            let defaults = arg.get_default_values();
            let number = |value: &clap::builder::OsStr| {
                value.to_str().is_some_and(|text| text.parse::<u32>().is_ok())
            };
            if defaults.iter().any(number) { "number" } else { "text" }
        }
    }
}

#[test]
fn every_flag_of_flanneld_is_there_with_its_name_variable_default_and_kind() {
    let mut command = Cli::command();
    command.build();
    let flags = flags();
    assert_eq!(flags.len(), 31);
    for flag in flags {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag.name));
        let arg = arg.unwrap_or_else(|| panic!("--{} is missing", flag.name));
        assert_eq!(kind(arg), flag.kind, "{}", flag.name);
        if let Some(name) = flag.variable {
            assert_eq!(variable(flag.name), name);
        }
        if flag.name != "version" {
            let default = arg.get_default_values().join(OsStr::new(","));
            assert_eq!(default.to_str().unwrap(), flag.default.unwrap_or(""), "{}", flag.name);
        }
    }
}

#[test]
fn every_flag_of_flanneld_is_taken_in_every_spelling_and_from_the_environment() {
    let value = |flag: &Flag| match (flag.name, flag.kind) {
        ("public-ip", _) => "192.0.2.9",
        ("public-ipv6", _) => "2001:db8::9",
        ("healthz-ip" | "iface-can-reach", _) => "192.0.2.1",
        ("vmodule", _) => "node=1",
        (_, "number") => "7",
        (_, "bool") => "false",
        _ => "/some/text",
    };
    for flag in flags().iter().filter(|flag| flag.name != "version") {
        let (name, value) = (flag.name, value(flag));
        for dashes in ["-", "--"] {
            assert!(read(&[&format!("{dashes}{name}={value}")], &[]).is_ok(), "{name}");
            let apart = read(&[&format!("{dashes}{name}"), value], &[]);
            // As in Go, a switch takes its value after = only.
            assert_eq!(apart.is_ok(), flag.kind != "bool", "{name}");
        }
        assert!(read(&[], &[(&variable(name), value)]).is_ok(), "{name}");
        assert!(read(&[], &[(&variable(name), "")]).is_ok(), "{name}");
    }
}

#[test]
fn switches_are_read_as_in_go() {
    for (args, expected) in [
        (&["-iptables-forward-rules=false"][..], false),
        (&["--iptables-forward-rules=F"], false),
        (&["--iptables-forward-rules=0"], false),
        (&["-iptables-forward-rules"], true),
        (&["-iptables-forward-rules=TRUE"], true),
        (&[], true),
    ] {
        assert_eq!(node(args, &[]).traffic.iptables_forward_rules, expected, "{args:?}");
    }
    let environment = [("FLANNELD_IPTABLES_FORWARD_RULES", "false")];
    assert!(!node(&[], &environment).traffic.iptables_forward_rules);
}

#[test]
fn an_empty_text_is_no_text() {
    for args in [&["-public-ip="][..], &["--public-ip", ""], &["--etcd-cafile=", "-iface="]] {
        let args = node(args, &[]);
        assert_eq!((args.public_ip, args.iface.len()), (None, 0));
        assert_eq!(args.store.etcd().ca, None);
    }
    assert!(read(&["-healthz-port="], &[]).is_err(), "no number");
}

#[test]
fn of_a_flag_that_is_given_twice_the_last_counts() {
    assert_eq!(node(&["-v=1", "-v=2"], &[]).log.v, 2);
    assert_eq!(
        node(&["-subnet-file=/a", "--subnet-file", "/b"], &[]).subnet_file,
        PathBuf::from("/b")
    );
}

#[test]
fn what_has_no_effect_is_said_once_with_what_to_do() {
    let said = |args: &[&str], environment: &[(&str, &str)]| {
        let args = node(args, environment);
        args.without_effect()
    };
    let of_kubernetes = [
        "-kubeconfig-file=/x",
        "-kube-api-url=https://x",
        "-kube-annotation-prefix=a",
        "-net-config-path=/y",
        "-set-node-network-unavailable",
        "-log_backtrace_at=a:1",
    ];
    let of_others = [
        "-store=memory",
        "-etcd-endpoints=http://x:1",
        "-etcd-cafile=/c",
        "-healthz-ip=127.0.0.1",
        "-ip-masq-fully-random-disable",
        "-ip-masq-except=192.0.2.0/24",
        "-node-id=a",
        "-state-dir=/s",
    ];
    let all = said(&[&of_kubernetes[..], &of_others].concat(), &[]);
    let golden = include_str!("../golden/without-effect.txt");
    assert_eq!(all.iter().map(|line| format!("{line}\n")).collect::<String>(), golden);

    let environment = [("FLANNELD_KUBE_ANNOTATION_PREFIX", "a"), ("FLANNELD_ETCD_PREFIX", "/x")];
    assert_eq!(said(&[], &environment).len(), 1, "a default value counts too if it is given");
    assert_eq!(said(&["-set-node-network-unavailable=true"], &[]).len(), 1);
    let useful = [
        "-etcd-endpoints=http://x:1",
        "-healthz-ip=::1",
        "-healthz-port=1",
        "-ip-masq",
        "-state-dir=/s",
        "-ip-masq-fully-random-disable",
        "-public-ip=192.0.2.1",
    ];
    assert_eq!(said(&useful, &[]), [""; 0]);
    assert_eq!(said(&[], &[]), [""; 0]);
}
