//! What happens to packets beside carrying them to peers.

use clap::{ArgAction, Args};

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

    /// How often iptables is looked at where it does not tell of changes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = values::number(1..=86_400_u32))]
    pub(crate) iptables_resync: u32,

    /// Let the firewall forward packets of the network, in iptables or nftables.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) iptables_forward_rules: bool,

    /// Drop packets to addresses of our subnet that no pod has.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) ip_blackhole_route: bool,
}
