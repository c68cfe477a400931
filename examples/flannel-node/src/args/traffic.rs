//! What happens to packets beside carrying them to peers.

use std::time::Duration;

use clap::{ArgAction, Args};
use flannel_firewall::{FirewallOptions, Masquerade};
use ipnetwork::IpNetwork;

use super::values;

/// What happens to packets beside carrying them to peers.
#[derive(Args, Debug)]
pub(crate) struct TrafficArgs {
    /// Give packets that leave the network the address of this node.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) ip_masq: bool,

    /// Choose the port of a masqueraded packet as the kernel likes, not at random.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) ip_masq_fully_random_disable: bool,

    /// Blocks outside of the network, such as that of the nodes, to which packets keep their address all the same. Who is there
    /// needs a route to the network.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = values::block)]
    pub(crate) ip_masq_except: Vec<IpNetwork>,

    /// How often iptables is looked at where it does not tell of changes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = RESYNC_SECONDS, allow_negative_numbers = true,
        value_parser = values::number_or_less(1..=86_400))]
    pub(crate) iptables_resync: i32,

    /// Let the firewall forward packets of the network, in iptables or nftables.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) iptables_forward_rules: bool,

    /// Drop packets to addresses of our subnet that no pod has.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) ip_blackhole_route: bool,

    /// Refuse packets between pods of different nodes that would not be encrypted, and networks whose backend does not encrypt.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) require_encryption: bool,
}

impl TrafficArgs {
    /// The firewall that is asked for.
    pub(crate) fn firewall(&self) -> FirewallOptions {
        let masquerade = match (self.ip_masq, self.ip_masq_fully_random_disable) {
            (false, _) => Masquerade::Off,
            (true, false) => Masquerade::RandomPorts,
            (true, true) => Masquerade::KeepPorts,
        };
        FirewallOptions {
            masquerade,
            keep_source: self.ip_masq_except.clone(),
            forward: self.iptables_forward_rules,
            check_every: Duration::from_secs(match self.iptables_resync {
                seconds @ 1.. => seconds.unsigned_abs().into(),
                // flanneld looks without a pause then.
                _ => RESYNC_SECONDS.unsigned_abs().into(),
            }),
            ..FirewallOptions::default()
        }
    }
}

/// As flanneld's.
const RESYNC_SECONDS: i32 = 5;

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;

    #[test]
    fn the_flags_say_which_firewall() {
        let firewall = |args: &[&str]| {
            let line = ["flannel-node"].iter().chain(args).map(Into::into);
            Cli::read(line, |_| None).unwrap().node.traffic.firewall()
        };
        assert_eq!(firewall(&[]), FirewallOptions::default());
        let given = firewall(&[
            "-ip-masq",
            "-ip-masq-except=192.0.2.0/24,fd00::/64",
            "-iptables-resync=7",
            "-iptables-forward-rules=false",
        ]);
        assert_eq!((given.masquerade, given.forward), (Masquerade::RandomPorts, false));
        let except = ["192.0.2.0/24", "fd00::/64"].map(|block| block.parse().unwrap());
        assert_eq!(given.keep_source, except);
        assert_eq!(given.check_every, Duration::from_secs(7));
        for none in ["-iptables-resync=0", "-iptables-resync=-7"] {
            assert_eq!(firewall(&[none]).check_every, Duration::from_secs(5));
        }
        let kept = firewall(&["-ip-masq=true", "-ip-masq-fully-random-disable"]);
        assert_eq!(kept.masquerade, Masquerade::KeepPorts);
    }
}
