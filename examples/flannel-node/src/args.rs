//! Command line and environment, in flanneld's spelling.

mod docker_opts;
mod env_file;
mod explain;
mod health;
mod kubectl;
mod kubernetes;
mod logs;
mod node;
mod operate;
mod probe;
mod refusals;
mod sandbox;
mod spelling;
mod store;
mod teardown;
mod traffic;
mod values;
mod verbosity;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use docker_opts::DockerOptsArgs;
pub(crate) use explain::ExplainArgs;
pub(crate) use health::HealthArgs;
pub(crate) use kubectl::{BenchPeerArgs, KubectlCommand};
pub(crate) use kubernetes::KubernetesArgs;
pub(crate) use logs::{LogArgs, LogFormat};
pub(crate) use node::NodeArgs;
pub(crate) use operate::{ConfigCommand, LeasesCommand};
pub(crate) use probe::ProbeArgs;
pub(crate) use sandbox::{Sandbox, SandboxArgs};
pub(crate) use store::StoreArgs;
pub(crate) use teardown::TeardownArgs;
pub(crate) use traffic::TrafficArgs;
pub(crate) use verbosity::{ModuleLevels, level};

/// A routed subnet for this host, and routes to the subnets of all others.
///
/// Started without a command it runs a node in the foreground. Every option can be given as -name value, --name value or
/// -name=value, or as FLANNELD_NAME in the environment, in capitals and with _ for -; the command line wins.
#[derive(Debug, Parser)]
#[command(
    name = "flannel-node",
    version,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    after_help = EXIT_CODES
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) node: NodeArgs,

    /// Read FLANNELD_ variables from a file too, as systemd's EnvironmentFile= does; those of the environment win.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) env_file: Option<PathBuf>,
}

/// What the program ends with.
const EXIT_CODES: &str = "\
Exit codes:
  0  fine; for status: the node is ready; for explain: nothing is broken
  1  not fine
  2  the command line, the environment or the network's configuration is wrong; nothing was touched";

/// What to do instead of running a node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a cluster of real nodes in network namespaces, break a route, and watch it being repaired.
    Demo(DemoArgs),
    /// Follow the way between two pods through this host, and name what is broken first.
    Explain(ExplainArgs),
    /// Look at the leases of a network and change them.
    #[command(subcommand)]
    Leases(LeasesCommand),
    /// Look at the configuration of a network and change it.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write options for Docker's daemon that fit this node's subnet, as mk-docker-opts.sh does.
    DockerOpts(DockerOptsArgs),
    /// Install a CNI configuration for the container runtime, as flannel's install-conf does.
    #[command(hide = true)]
    InstallConf(InstallConfArgs),
    /// Look at the nodes of a Kubernetes cluster: kubectl flannel, when this program is called kubectl-flannel.
    #[command(subcommand)]
    Kubectl(KubectlCommand),
    /// Be one end of a measurement.
    #[command(hide = true)]
    BenchPeer(BenchPeerArgs),
    /// Print what the node on this host says of itself.
    Status(StatusArgs),
    /// Remove the routes and devices that a node has left on this host, and its subnet file.
    Teardown(TeardownArgs),
    /// Print a script that completes this command line in a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
}

/// Which node to ask, and how to print what it says.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// The node's subnet file: its socket is beside it.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// Print all of it, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which file to install, and where.
#[derive(Args, Debug)]
pub(crate) struct InstallConfArgs {
    /// The file to copy.
    pub(crate) source: PathBuf,

    /// Where the container runtime reads it, such as /etc/cni/net.d/10-flannel.conflist.
    pub(crate) destination: PathBuf,
}

/// How to run the demo.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// How many hosts.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = values::number(2..=50_u8))]
    pub(crate) hosts: u8,

    /// The backend that the nodes use.
    #[arg(long, value_name = "TYPE", default_value = "host-gw")]
    pub(crate) backend: String,

    /// Leave the cluster up, and say how to look around in it, until Ctrl-C.
    #[arg(long, action = ArgAction::SetTrue)]
    pub(crate) keep: bool,
}
