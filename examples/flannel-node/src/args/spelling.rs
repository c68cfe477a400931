//! flanneld's spellings of flags, and the environment.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use clap::{Command, CommandFactory, FromArgMatches, error::ErrorKind};

use super::{Cli, env_file::EnvFile, refusals::Given, values};

impl Cli {
    /// Reads the command line in any of flanneld's spellings, and the environment for what it leaves open.
    ///
    /// # Errors
    ///
    /// What to tell the user, with the exit code that goes with it: 0 for help and version, 2 for mistakes.
    pub(crate) fn read(
        args: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let root = Self::command();
        let mut args: Vec<_> = args.into_iter().collect();
        let program = args.first().map(PathBuf::from).unwrap_or_default();
        // flannel's image has a program of the first name, and kubectl runs the second.
        for (name, command) in [("install-conf", "install-conf"), ("kubectl-flannel", "kubectl")] {
            if program.ends_with(name) {
                args.insert(1, command.into());
            }
        }
        let file = EnvFile::take(&mut args, environment("FLANNELD_ENV_FILE"));
        let file = file.map_err(|reason| root.clone().error(ErrorKind::Io, reason))?;
        // The options of the command that is meant are those that the environment may give.
        let mut command = &root.clone();
        for arg in args.iter().skip(1) {
            let Some(inner) = command.find_subcommand(arg) else { break };
            command = inner;
        }
        // mk-docker-opts.sh reads its flags as getopts does: single letters, and several of them after one dash.
        let single_letters = command.get_name() == "docker-opts";
        let as_in_go = |arg| if single_letters { arg } else { with_two_dashes(arg) };
        let args: Vec<_> = args.into_iter().map(as_in_go).collect();
        let args = without_empty(version_as_switch(args), command);
        let mut odd = Vec::new();
        let mut all = args.clone();
        // What is only asked for, such as --release, nobody means for all commands.
        let with_values = command.get_arguments().filter(|arg| arg.get_action().takes_values());
        let of_environment = |name: &str| {
            let value = environment(&variable(name)).or_else(|| file.get(&variable(name)));
            value.filter(|value| !value.is_empty())
        };
        let is_given =
            |name| args.iter().any(|arg| names(arg, name)) || of_environment(name).is_some();
        let knows_network = command.get_arguments().any(|arg| arg.get_long() == Some("network"));
        for name in with_values.filter_map(clap::Arg::get_long) {
            let Some(value) = of_environment(name) else { continue };
            if name == "env-file" || args.iter().any(|arg| names(arg, name)) {
                continue;
            }
            let is_typed = |other: &&&str| args.iter().any(|arg| names(arg, other));
            if let Some(rival) = rivals(name).iter().find(is_typed) {
                odd.push(format!("{}: it is ignored beside --{rival}", variable(name)));
                continue;
            }
            if name == "backend" && knows_network && !is_given("network") {
                odd.push(format!("{}: it is ignored without --network", variable(name)));
                continue;
            }
            if let Some(expected) = unreadable(name, &value) {
                let (variable, value) = (variable(name), value.display());
                odd.push(format!(
                    "{variable} is {value:?}, expected {expected}; it is ignored, as flanneld does"
                ));
                continue;
            }
            let mut arg = OsString::from(format!("--{name}="));
            arg.push(value);
            all.push(arg);
        }
        if let Some(reason) = misspelt(&all) {
            return Err(root.clone().error(ErrorKind::UnknownArgument, reason));
        }
        let matches = root.try_get_matches_from(all)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.node.given = Given::of(&matches);
        cli.node.odd = odd;
        cli.node.refuse()?;
        Ok(cli)
    }
}

/// The environment variable that stands for a flag.
pub(super) fn variable(flag: &str) -> String {
    format!("FLANNELD_{}", flag.to_uppercase().replace('-', "_"))
}

/// `-name` as `--name`: Go's flag package knows no difference.
fn with_two_dashes(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.starts_with('-') && !text.starts_with("--") => {
            let mut letters = text[1..].chars();
            let first = letters.next().is_some_and(|c| c.is_ascii_alphabetic());
            // -h, -V and -v stay what they are; a negative number is a value.
            let long = letters.next().is_some_and(|c| c != '=');
            if first && long { format!("-{text}").into() } else { arg }
        }
        _ => arg,
    }
}

/// What is meant by options that clap would take for others.
fn misspelt(args: &[OsString]) -> Option<String> {
    let texts: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    let apart = texts.windows(2).find(|pair| {
        let is_switch = pair[0].strip_prefix("--").is_some_and(|name| SWITCHES.contains(&name));
        is_switch && values::switch(pair[1]).is_ok()
    });
    if let Some([flag, value]) = apart {
        return Some(format!("{flag} takes its value behind an equals sign: {flag}={value}"));
    }
    let of_leases = |text: &&&str| {
        let name = text.split('=').next().unwrap_or_default();
        name.starts_with("--subnet-lease-") && !"--subnet-lease-renew-margin".starts_with(name)
    };
    texts.iter().find(of_leases).map(|text| {
        format!(
            "unexpected argument '{text}': --lease-ttl says how long a lease lasts, and --subnet-lease-renew-margin when it is renewed"
        )
    })
}

/// What flanneld expects of a variable whose value it cannot read: it logs an error then and goes on without.
fn unreadable(flag: &str, value: &OsStr) -> Option<&'static str> {
    let text = value.to_str().unwrap_or_default();
    if NUMBERS.contains(&flag) {
        return text.parse::<i64>().is_err().then_some("a whole number");
    }
    (SWITCHES.contains(&flag) && values::switch(text).is_err()).then_some("true or false")
}

/// `--version=true` as `--version`, and `--version=false` as nothing.
fn version_as_switch(args: Vec<OsString>) -> Vec<OsString> {
    let shaped = args.into_iter().filter_map(|arg| {
        match arg.to_str().and_then(|arg| arg.strip_prefix("--version=")).map(values::switch) {
            Some(Ok(true)) => Some("--version".into()),
            Some(Ok(false)) => None,
            _ => Some(arg),
        }
    });
    shaped.collect()
}

/// Leaves out flags that are given an empty text and may be absent: manifests write --public-ip=$IP whether or not there is one.
fn without_empty(args: Vec<OsString>, command: &Command) -> Vec<OsString> {
    let optional = |arg: &OsStr| {
        let may_be_absent = |flag: &&clap::Arg| {
            let long = flag.get_long().unwrap_or_default();
            flag.get_default_values().is_empty() || MAY_BE_EMPTY.contains(&long)
        };
        let mut flags =
            command.get_arguments().filter(may_be_absent).filter_map(clap::Arg::get_long);
        flags.any(|name| names(arg, name))
    };
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        if arg.as_encoded_bytes().ends_with(b"=") && optional(&arg) {
            continue;
        }
        let separate = !arg.as_encoded_bytes().contains(&b'=');
        if separate && args.peek().is_some_and(|value| value.is_empty()) && optional(&arg) {
            args.next();
            continue;
        }
        kept.push(arg);
    }
    kept
}

/// Whether `arg` gives the flag `name`.
fn names(arg: &OsStr, name: &str) -> bool {
    let Some(text) = arg.to_str() else { return false };
    let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
        return false;
    };
    flag.split_once('=').map_or(flag, |(flag, _)| flag) == name
}

/// On the command line these take the place of what the environment says of another flag.
fn rivals(name: &str) -> &'static [&'static str] {
    match name {
        "kube-subnet-mgr" => &["store"],
        "net-config-map" => &["net-config-path"],
        "net-config-path" => &["net-config-map"],
        "network" | "node-id" | "store" => &["kube-subnet-mgr"],
        _ => &[],
    }
}

/// Flags with a default that flanneld takes without a text as well.
const MAY_BE_EMPTY: [&str; 4] =
    ["healthz-ip", "kube-annotation-prefix", "net-config-path", "subnet-file"];
/// flanneld's flags of type int that it takes 0 for.
const NUMBERS: [&str; 3] = ["healthz-port", "iptables-resync", "v"];
/// flanneld's flags of type bool.
const SWITCHES: [&str; 6] = [
    "ip-blackhole-route",
    "ip-masq",
    "ip-masq-fully-random-disable",
    "iptables-forward-rules",
    "kube-subnet-mgr",
    "set-node-network-unavailable",
];
