//! Flags of flanneld that this program knows and cannot serve.

use std::collections::BTreeSet;

use clap::{ArgMatches, CommandFactory, Id, error::ErrorKind, parser::ValueSource};

use super::{Cli, NodeArgs};

impl NodeArgs {
    /// Refuses what would be promised and not done.
    pub(super) fn refuse(&self) -> Result<(), clap::Error> {
        let kubernetes = self.kubernetes.kube_subnet_mgr;
        let refusals = [
            (
                !kubernetes
                    && self.store.store.as_ref().is_some_and(|store| store.name == "kubernetes"),
                "--store kubernetes: leases in Kubernetes have flags of their own, give --kube-subnet-mgr instead",
            ),
            (
                kubernetes && self.store.store.is_some(),
                "--kube-subnet-mgr and --store: leases are in one place, leave one of the two out",
            ),
            (
                kubernetes && self.network.is_some(),
                "--kube-subnet-mgr and --network: the network's configuration is the file of --net-config-path, write it there",
            ),
            (
                kubernetes && self.node_id.is_some(),
                "--kube-subnet-mgr and --node-id: the node goes by the name of its Node, which NODE_NAME says",
            ),
        ];
        match refusals.iter().find(|(refused, _)| *refused) {
            None => Ok(()),
            Some((_, reason)) => Err(Cli::command().error(ErrorKind::ValueValidation, reason)),
        }
    }

    /// What was given and changes nothing, with the reason and what to do.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let etcd = ["endpoints", "prefix", "keyfile", "certfile", "cafile", "username", "password"];
        let etcd = etcd.map(|name| format!("etcd_{name}"));
        let etcd: Vec<_> = etcd.iter().map(String::as_str).collect();
        let kubernetes = self.kubernetes.kube_subnet_mgr;
        let reasons: &[(bool, &[&str], &str)] = &[
            (
                !kubernetes,
                &[
                    "kube_api_url",
                    "kube_annotation_prefix",
                    "kubeconfig_file",
                    "net_config_map",
                    "set_node_network_unavailable",
                ],
                "leases are not kept in Kubernetes; leave it out, or give --kube-subnet-mgr too",
            ),
            (
                !kubernetes,
                &["net_config_path"],
                "the network's configuration is in the store; leave it out, and write it there with flannel-node config set",
            ),
            (kubernetes, &etcd, "leases are in Kubernetes; leave it out"),
            (
                kubernetes,
                &["state_dir", "subnet_lease_renew_margin", "lease_ttl"],
                "the cluster keeps this node's subnet under the name of its Node, and it does not expire; leave it out",
            ),
            (
                true,
                &["log_backtrace_at"],
                "errors name what failed without a backtrace; leave it out",
            ),
            (
                self.store.store.is_some(),
                &etcd,
                "leases are where --store says; leave it out, or leave out --store to keep them in etcd",
            ),
            (
                !kubernetes && self.store.store.is_none() && self.store.tls_is_off(),
                &["etcd_cafile", "etcd_certfile", "etcd_keyfile"],
                "all endpoints are http://, so nothing is encrypted; use https://, or leave it out",
            ),
            (
                self.traffic.iptables_resync <= 0,
                &["iptables_resync"],
                "a pause is needed, so it is the default of 5 s; leave it out",
            ),
            (
                self.health.healthz_port < 0,
                &["healthz_port"],
                "there is no such port, so nothing listens; give 0",
            ),
            (
                self.health.healthz_port <= 0,
                &["healthz_ip", "healthz_explain"],
                "nothing listens without a port; give --healthz-port too",
            ),
            (
                !self.traffic.ip_masq,
                &["ip_masq_except", "ip_masq_fully_random_disable"],
                "nothing is masqueraded; give --ip-masq too",
            ),
            (
                self.node_id.is_some(),
                &["state_dir"],
                "--node-id names the node, so that no name is kept there; leave one of the two out",
            ),
        ];
        let effectless = reasons.iter().filter(|(applies, ..)| *applies);
        let effectless = effectless.flat_map(|(_, flags, reason)| self.given.said(flags, reason));
        self.odd.iter().cloned().chain(effectless).collect()
    }
}

/// Which flags were given, on the command line or by the environment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Given(BTreeSet<String>);

impl Given {
    /// Those that clap did not fill in by itself.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let is_given =
            |id: &&Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Self(matches.ids().filter(is_given).map(ToString::to_string).collect())
    }

    /// A text for each of the flags that was given.
    fn said(&self, flags: &[&str], reason: &str) -> Vec<String> {
        let given = flags.iter().filter(|flag| self.0.contains(**flag));
        // The one flag that klog spells with an underscore.
        let spelt = |flag: &str| match flag {
            "log_backtrace_at" => flag.to_owned(),
            _ => flag.replace('_', "-"),
        };
        given.map(|flag| format!("--{}: {reason}", spelt(flag))).collect()
    }
}
