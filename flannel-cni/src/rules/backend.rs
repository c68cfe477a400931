use flannel_firewall::{
    Family,
    iptables::{Program, RunCounter},
};
use flannel_netlink::Namespace;

use super::connect;

/// What keeps the rules of containers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Backend {
    Iptables,
    Nftables,
}

impl Backend {
    /// The one that a configuration names.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "iptables" => Some(Self::Iptables),
            "nftables" => Some(Self::Nftables),
            _ => None,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// The one for configurations that name none: as containernetworking's plugins do, iptables if it works, or else nftables, so that
    /// a pod may be connected by either's plugins and disconnected by the other's.
    pub(crate) async fn detect(host: &Namespace) -> Self {
        let runs = RunCounter::default();
        let Ok(Some(program)) = Program::find(host, &[], Family::Ipv4, "", &runs).await else {
            return Self::Nftables;
        };
        let works = match program.notifies() {
            true => match connect(host) {
                Ok(mut client) => client.generation().await.is_ok(),
                Err(_) => false,
            },
            // The kernel may have no such tables, which it says when it is asked for one.
            false => program.change("*filter\nCOMMIT\n".to_owned()).await.is_ok(),
        };
        if works { Self::Iptables } else { Self::Nftables }
    }
}
