//! Flags of flanneld that this program knows and cannot serve.

use clap::{CommandFactory, error::ErrorKind};

use super::{Cli, NodeArgs};

impl NodeArgs {
    /// Refuses what would be promised and not done.
    pub(super) fn refuse(&self) -> Result<(), clap::Error> {
        let refusals = [
            (
                self.kubernetes.kube_subnet_mgr,
                "--kube-subnet-mgr: this program keeps no leases in Kubernetes yet; leave it out to use etcd (--etcd-endpoints), \
                 or give --store",
            ),
            (
                self.traffic.ip_blackhole_route,
                "--ip-blackhole-route: this program makes no such route yet; leave it out and use ip route add blackhole SUBNET",
            ),
        ];
        match refusals.iter().find(|(refused, _)| *refused) {
            None => Ok(()),
            Some((_, reason)) => Err(Cli::command().error(ErrorKind::ValueValidation, reason)),
        }
    }

    /// What was given and changes nothing, with the reason.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        let kubernetes = &self.kubernetes;
        let given = [
            (self.log.log_backtrace_at.is_some(), "--log_backtrace_at: errors have no backtrace"),
            (
                kubernetes.kube_api_url.is_some(),
                "--kube-api-url: leases are not kept in Kubernetes",
            ),
            (
                kubernetes.kubeconfig_file.is_some(),
                "--kubeconfig-file: leases are not kept in Kubernetes",
            ),
        ];
        given.into_iter().filter(|(given, _)| *given).map(|(_, text)| text).collect()
    }
}
