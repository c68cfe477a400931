//! The flags of mk-docker-opts.sh.

use std::path::PathBuf;

use clap::Args;
use flannel_daemon::docker_options::DockerOptions;

/// What Docker's daemon is told, in the flags of flannel's mk-docker-opts.sh.
#[derive(Args, Debug)]
pub(crate) struct DockerOptsArgs {
    /// The file that the node has written.
    #[arg(short = 'f', value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) flannel_env: PathBuf,

    /// The file to write.
    #[arg(short = 'd', value_name = "FILE", default_value = "/run/docker_opts.env")]
    pub(crate) docker_env: PathBuf,

    /// Write each option as a variable, such as DOCKER_OPT_MTU; with neither -i nor -c, both.
    #[arg(short = 'i')]
    pub(crate) individual: bool,

    /// Write all options in one variable.
    #[arg(short = 'c')]
    pub(crate) combined: bool,

    /// Leave out --ip-masq, which old versions of Docker do not know.
    #[arg(short = 'm')]
    pub(crate) no_ip_masq: bool,

    /// The name of the variable with all options.
    #[arg(short = 'k', value_name = "NAME", default_value = "DOCKER_OPTS")]
    pub(crate) key: String,
}

impl DockerOptsArgs {
    pub(crate) fn options(&self) -> DockerOptions {
        DockerOptions {
            subnet_file: self.flannel_env.clone(),
            docker_file: self.docker_env.clone(),
            individual: self.individual,
            combined: self.combined,
            no_ip_masq: self.no_ip_masq,
            key: self.key.clone(),
        }
    }
}
