//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures flannel nodes on this machine, in network namespaces, side by side with other programs.
#[derive(Debug, Parser)]
#[command(name = "flannel-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) common: Common,
}

/// What all benchmarks share.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// How often each thing is measured, all of them in turns.
    #[arg(long, value_name = "N", default_value_t = 5, global = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) runs: u32,

    /// The backends to measure, as the network config names them.
    #[arg(
        long,
        value_name = "TYPE,...",
        value_delimiter = ',',
        default_value = "host-gw",
        global = true
    )]
    pub(crate) backend: Vec<String>,

    /// Where the leases are, as far as that is of interest to a benchmark.
    #[arg(
        long,
        value_name = "STORE,...",
        value_delimiter = ',',
        default_value = "file",
        value_enum,
        global = true
    )]
    pub(crate) store: Vec<StoreKind>,

    /// The node to measure. Without it, flannel-node beside this program.
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) node: Option<PathBuf>,

    /// Another program to measure in the same run, which takes the node's flags; may be given several times.
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_peer, global = true)]
    pub(crate) peer: Vec<(String, PathBuf)>,

    /// Where stores and other files are made. Without it, /dev/shm or the folder for temporary files.
    #[arg(long, value_name = "FOLDER", global = true)]
    pub(crate) scratch: Option<PathBuf>,

    /// Also writes all samples as JSON; - for standard output, where it takes the place of the tables.
    #[arg(long, value_name = "FILE|-", global = true)]
    pub(crate) json: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// From the start of a node on a store with leases until all of their subnets can be reached.
    Converge(Converge),
    /// Between two hosts or pods behind them: bandwidth, packets, round trips, and what they cost.
    Throughput(Throughput),
    /// What a node takes: time to start, memory, threads, processor time and wakeups when idle.
    Footprint(Footprint),
    /// A node of a large Kubernetes cluster: start, memory, heartbeats of other nodes, and new nodes.
    Kubernetes(Kubernetes),
    /// How long packets and kernel state are wrong after a fault.
    Recover(Recover),
    /// Taking a lease: many nodes at once, and one on a store with many leases.
    Acquire(Acquire),
    /// Connecting pods: each call of a CNI plugin, beside the plugins of containernetworking.
    Cni(Cni),
}

/// How to measure convergence.
#[derive(Args, Clone, Debug)]
pub(crate) struct Converge {
    /// How many leases there are.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1000,10000")]
    pub(crate) peers: Vec<u32>,

    /// How many times one peer is added and removed again.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) updates: u32,

    /// How long the converged node is watched, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) idle: Duration,
}

/// How to measure throughput.
#[derive(Args, Clone, Debug)]
pub(crate) struct Throughput {
    /// How long each transfer takes, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    pub(crate) duration: Duration,

    /// How many round trips are timed.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) round_trips: u32,

    /// The families of addresses, of pods and underlay alike.
    #[arg(long, value_name = "FAMILY,...", value_delimiter = ',', default_value = "4", value_enum)]
    pub(crate) family: Vec<Family>,

    /// Whether devices cut and join packets, and check them, for the sender and the receiver.
    #[arg(
        long,
        value_name = "on|off,...",
        value_delimiter = ',',
        default_value = "on",
        value_enum
    )]
    pub(crate) offloads: Vec<Offloads>,

    /// Who talks to whom.
    #[arg(
        long,
        value_name = "pods|hosts|masqueraded,...",
        value_delimiter = ',',
        default_value = "pods",
        value_enum
    )]
    pub(crate) between: Vec<Between>,

    /// Only the paths whose names contain one of these; what the last columns compare with should be among them.
    #[arg(long, value_name = "TEXT,...", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
}

/// How to measure the footprint.
#[derive(Args, Clone, Debug)]
pub(crate) struct Footprint {
    /// How many leases there are.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "0,1000,10000")]
    pub(crate) peers: Vec<u32>,

    /// How long the node is watched, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub(crate) idle: Duration,
}

/// How to measure a node of a Kubernetes cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct Kubernetes {
    /// How many other Nodes there are.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1000,5000,10000")]
    pub(crate) peers: Vec<u32>,

    /// A kube-apiserver to measure with, and etcd beside it, or the one in PATH. Without it, the API server of the tests.
    #[arg(long, value_name = "PATH")]
    pub(crate) api_server: Option<PathBuf>,

    /// How many times some Node's status is updated.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) heartbeats: u32,

    /// Updates per second. Kubelets make one in five minutes: 33 per second with 10,000 Nodes.
    #[arg(long, value_name = "N", default_value_t = 33, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rate: u32,

    /// How many Nodes are added.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) updates: u32,

    /// How long to wait for a node that starts, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = parse_seconds)]
    pub(crate) patience: Duration,
}

/// How to measure recovery.
#[derive(Args, Clone, Debug)]
pub(crate) struct Recover {
    /// Only the faults whose names contain one of these.
    #[arg(long, value_name = "TEXT,...", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Probes per second.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rate: u32,

    /// How long to wait for a repair, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = parse_seconds)]
    pub(crate) patience: Duration,

    /// How often a node is ended and started again, SIGKILL and SIGTERM in turns.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) restarts: u32,

    /// How long somebody keeps meddling, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub(crate) meddling: Duration,
}

/// How to measure acquisition.
#[derive(Args, Clone, Debug)]
pub(crate) struct Acquire {
    /// How many nodes start at once; 0 to measure one alone.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=200))]
    pub(crate) nodes: u32,

    /// How many leases there are when one node starts.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "0,10000,60000")]
    pub(crate) leases: Vec<u32>,
}

/// How to measure CNI plugins.
#[derive(Args, Clone, Debug)]
pub(crate) struct Cni {
    /// Our plugins. Without it, flannel-cni beside this program.
    #[arg(long, value_name = "PATH")]
    pub(crate) plugin: Option<PathBuf>,

    /// The folder of containernetworking's plugins. Without it, what ./ci.sh cni built.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) theirs: Option<PathBuf>,

    /// How many addresses are in use in the second measurement.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub(crate) taken: u32,

    /// How many pods come at once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) at_once: u32,

    /// How often the machine restarts.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) restarts: u32,
}

/// Where leases are.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum StoreKind {
    /// A real etcd, which the benchmark runs.
    Etcd,
    /// A folder.
    File,
}

impl StoreKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::File => "file",
        }
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Family {
    /// IPv4.
    #[value(name = "4")]
    V4,
    /// IPv6.
    #[value(name = "6")]
    V6,
}

/// What devices do for sender and receiver.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Offloads {
    /// Nothing, as some network cards.
    Off,
    /// What the kernel's own devices do.
    On,
}

/// The ends of a transfer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Between {
    /// The hosts themselves, by the addresses that their pods have as gateways.
    Hosts,
    /// Pods whose host translates their addresses to its own.
    Masqueraded,
    /// Pods, each behind its host's bridge.
    Pods,
}

fn parse_peer(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.into(), path.into()))
        }
        _ => Err("expected NAME=PATH, such as before=/tmp/flannel-node".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|time| !time.is_zero()).ok_or_else(|| "expected seconds, such as 0.5".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_read_before_and_behind_the_benchmark() {
        let line = "flannel-bench --runs 2 converge --peers 5,7 --idle 0.5 --backend host-gw,vxlan --peer old=/x=y";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(
            (cli.common.runs, cli.common.backend),
            (2, vec!["host-gw".into(), "vxlan".into()])
        );
        assert_eq!(cli.common.peer, [("old".into(), "/x=y".into())]);
        let Command::Converge(converge) = cli.command else { panic!("not converge") };
        assert_eq!((converge.peers, converge.idle), (vec![5, 7], Duration::from_millis(500)));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        for (line, words) in [
            ("x converge --peer old", "expected NAME=PATH"),
            ("x converge --peer =old", "expected NAME=PATH"),
            ("x converge --idle -1", "unexpected argument"),
            ("x converge --idle=0", "expected seconds"),
            ("x converge --idle=1e300", "expected seconds"),
            ("x converge --runs 0", "1.."),
            ("x", "Usage"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = (parse_peer(&text), parse_seconds(&text));
        }
    }
}
