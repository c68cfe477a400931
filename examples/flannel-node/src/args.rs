//! Command line and environment, in flanneld's spelling.

use std::{
    ffi::{OsStr, OsString},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use flannel_core::{NodeId, Subnet};
use flannel_store::{EtcdConfig, EtcdPassword};
use ipnetwork::Ipv4Network;

/// A routed subnet for this host, and routes to the subnets of all others.
///
/// Started without a command it runs a node in the foreground. Every option can be given as -name value, --name value or
/// -name=value, or as FLANNELD_NAME in the environment, in capitals and with _ for -; the command line wins.
#[derive(Debug, Parser)]
#[command(name = "flannel-node", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// What to do instead of running a node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a cluster of real nodes in network namespaces, break a route, and watch it being repaired.
    Demo(DemoArgs),
    /// Look at the leases of a network and change them.
    #[command(subcommand)]
    Leases(LeasesCommand),
    /// Look at the configuration of a network and change it.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// What to do with leases.
#[derive(Debug, Subcommand)]
pub(crate) enum LeasesCommand {
    /// Print a line for each lease.
    List(StoreArgs),
    /// Print one lease in flannel's format.
    Show {
        /// The lease, such as 10.244.7.0-24.
        key: Subnet,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Keep a subnet for the node with a public address, for ever.
    Reserve {
        /// The subnet, such as 10.244.7.0-24.
        key: Subnet,
        /// The node's IPv4 address.
        #[arg(long, value_name = "IPV4", required_unless_present = "public_ipv6")]
        public_ip: Option<Ipv4Addr>,
        /// The node's IPv6 address.
        #[arg(long, value_name = "IPV6")]
        public_ipv6: Option<Ipv6Addr>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Give a subnet back. A node that still runs takes it again, or another one.
    Release {
        /// The lease, such as 10.244.7.0-24.
        key: Subnet,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// What to do with a network's configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a text is a usable configuration, and what follows from it. Looks at no store.
    Check {
        /// flannel's JSON.
        json: String,
    },
    /// Print the configuration as it is stored.
    Get(StoreArgs),
    /// Store a configuration. Refused if leases exist that do not fit it.
    Set {
        /// flannel's JSON.
        json: String,
        /// Store it all the same; nodes whose leases do not fit take others when they start again.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// Which store to use.
#[derive(Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// Where the leases live: file:FOLDER for all nodes of this machine, memory for a node on its own. Without it, etcd.
    #[arg(long, value_name = "STORE", value_parser = parse_store)]
    pub(crate) store: Option<StoreArg>,

    /// The client addresses of etcd's members.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub(crate) etcd_endpoints: Vec<String>,

    /// What all keys of the network in etcd begin with.
    #[arg(long, value_name = "PREFIX", default_value = "/coreos.com/network")]
    pub(crate) etcd_prefix: String,

    /// The key of our certificate, to show to etcd.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_keyfile: Option<PathBuf>,

    /// Our certificate, to show to etcd.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_certfile: Option<PathBuf>,

    /// The certificates that etcd's has to be signed by; this alone is enough for TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) etcd_cafile: Option<PathBuf>,

    /// The user to log in to etcd as.
    #[arg(long, value_name = "USER")]
    pub(crate) etcd_username: Option<String>,

    /// That user's password; better given as FLANNELD_ETCD_PASSWORD, where other users do not see it.
    #[arg(long, value_name = "PASSWORD")]
    pub(crate) etcd_password: Option<EtcdPassword>,
}

impl StoreArgs {
    /// How to reach etcd.
    pub(crate) fn etcd(&self) -> EtcdConfig {
        EtcdConfig {
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            endpoints: self.etcd_endpoints.clone(),
            key_file: self.etcd_keyfile.clone(),
            password: self.etcd_password.clone(),
            prefix: self.etcd_prefix.clone(),
            username: self.etcd_username.clone(),
        }
    }
}

/// How to run a node.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// The network to create if the store has none: an IPv4 block, or flannel's JSON.
    #[arg(long, value_name = "CIDR|JSON", value_parser = parse_network)]
    pub(crate) network: Option<NetworkArg>,

    /// The backend of a network that is created from a block.
    #[arg(long, value_name = "TYPE", default_value = "vxlan", requires = "network")]
    pub(crate) backend: String,

    /// This node's name in the store. Without it, its public address.
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,

    /// How long our lease lasts without a renewal, in seconds: 24 h as flannel's unless given.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60,
        value_parser = clap::value_parser!(u32).range(5..))]
    pub(crate) lease_ttl: u32,

    /// An interface to reach peers from, by name or address; may be given several times, the first that fits is taken.
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) iface: Vec<String>,

    /// The same by a regular expression on addresses, then on names; tried after --iface.
    #[arg(long, value_name = "REGEX")]
    pub(crate) iface_regex: Vec<String>,

    /// The interface that leads to this address; tried last.
    #[arg(long, value_name = "IP")]
    pub(crate) iface_can_reach: Option<IpAddr>,

    /// The IPv4 address that peers use to reach this node, if not the interface's own.
    #[arg(long, value_name = "IPV4")]
    pub(crate) public_ip: Option<Ipv4Addr>,

    /// The IPv6 address that peers use to reach this node, if not the interface's own.
    #[arg(long, value_name = "IPV6")]
    pub(crate) public_ipv6: Option<Ipv6Addr>,

    /// The file that tells others about this node's subnet.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// What to do when another node has our lease, or it was deleted.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) on_lease_loss: LeaseLossArg,

    /// How logs are written to standard error.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,

    /// How much is logged: 0 for changes and faults, 1 for each step, 2 and more for everything.
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub(crate) v: u8,
}

/// How to run the demo.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// How many hosts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=50))]
    pub(crate) hosts: u8,

    /// The backend that the nodes use.
    #[arg(long, value_name = "TYPE", default_value = "host-gw")]
    pub(crate) backend: String,

    /// Leave the cluster up, and say how to look around in it, until Ctrl-C.
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) keep: bool,
}

/// Where the leases live.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum StoreArg {
    File(PathBuf),
    Memory,
}

/// The network to create if there is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum NetworkArg {
    Block(Ipv4Network),
    Json(String),
}

/// What to do when the lease is lost.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LeaseLossArg {
    /// End with an error; the data path stays.
    Exit,
    /// Take a lease anew.
    #[default]
    Reacquire,
}

/// How logs look.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

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
        let args: Vec<_> = args.into_iter().map(with_two_dashes).collect();
        // The options of the command that is meant are those that the environment may give.
        let mut command = &root;
        for arg in args.iter().skip(1) {
            let Some(inner) = command.find_subcommand(arg) else { break };
            command = inner;
        }
        let from_environment = command
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .filter(|name| !args.iter().any(|arg| names(arg, name)))
            .filter_map(|name| {
                let mut arg = OsString::from(format!("--{name}="));
                arg.push(environment(&variable(name)).filter(|value| !value.is_empty())?);
                Some(arg)
            });
        let args: Vec<_> = args.iter().cloned().chain(from_environment).collect();
        Self::try_parse_from(args)
    }
}

/// The environment variable that stands for a flag.
fn variable(flag: &str) -> String {
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

/// Whether `arg` gives the flag `name`.
fn names(arg: &OsStr, name: &str) -> bool {
    let Some(text) = arg.to_str() else { return false };
    let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
        return false;
    };
    flag.split_once('=').map_or(flag, |(flag, _)| flag) == name
}

fn parse_store(text: &str) -> Result<StoreArg, String> {
    match text.split_once(':') {
        None if text == "memory" => Ok(StoreArg::Memory),
        Some(("file", path)) if !path.is_empty() => Ok(StoreArg::File(path.into())),
        _ => Err("expected file:FOLDER or memory".into()),
    }
}

fn parse_network(text: &str) -> Result<NetworkArg, String> {
    if text.trim_start().starts_with('{') {
        return Ok(NetworkArg::Json(text.into()));
    }
    let block = text.contains('/').then(|| text.parse().ok()).flatten();
    block.map(NetworkArg::Block).ok_or_else(|| {
        r#"expected a block such as 10.244.0.0/16 or JSON such as {"Network":"10.244.0.0/16"}"#
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str], environment: &[(&str, &str)]) -> Result<Cli, clap::Error> {
        let args = ["flannel-node"].iter().chain(args).map(OsString::from);
        Cli::read(args, |name| {
            environment.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value))
        })
    }

    fn node(args: &[&str], environment: &[(&str, &str)]) -> NodeArgs {
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
        assert_eq!((args.iface, args.v), (vec!["eth0".to_string(), "192.0.2.1".into()], 2));
        assert_eq!(node(&["-v", "3"], &[]).v, 3);
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
        assert_eq!((args.v, args.public_ip), (2, None));
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
        assert_eq!(store.store, Some(StoreArg::File("/x".into())));
    }

    #[test]
    fn mistakes_name_the_flag_and_end_with_2() {
        for (args, words) in [
            (&["--no-such-flag"][..], "--no-such-flag"),
            (&["-public-ip", "10.0.0"], "--public-ip"),
            (&["--store", "redis:x"], "expected file:FOLDER or memory"),
            (&["--network", "10.0.0.0"], "expected a block such as 10.244.0.0/16"),
            (&["--node-id", "a b"], "cannot be a node id"),
            (&["demo", "--hosts", "1"], "2..=50"),
            (&["surplus"], "surplus"),
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
    fn stores_and_networks_are_read() {
        let args = node(&["-store", "file:/var/lib/x", "-network", "10.3.0.0/16"], &[]);
        assert_eq!(args.store.store, Some(StoreArg::File("/var/lib/x".into())));
        assert_eq!(args.network, Some(NetworkArg::Block("10.3.0.0/16".parse().unwrap())));
        let json = r#"{"Network":"10.3.0.0/16"}"#;
        let args = node(&["-store=memory", "-network", json], &[]);
        assert_eq!(
            (args.store.store, args.network),
            (Some(StoreArg::Memory), Some(NetworkArg::Json(json.into())))
        );
    }
}
