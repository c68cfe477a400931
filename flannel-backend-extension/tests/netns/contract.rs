//! The contract of networks.

use super::support::{DUAL, IPV4, world};

/// As in flannel's documentation, with a check.
const HOST_GW: &str = r#"
    "SubnetAddCommand": "ip route add \"$SUBNET\" via \"$PUBLIC_IP\"",
    "SubnetRemoveCommand": "ip route del \"$SUBNET\" via \"$PUBLIC_IP\"",
    "SubnetCheckCommand": "test -n \"$(ip route show \"$SUBNET\" via \"$PUBLIC_IP\")\""
"#;
const DUAL_HOST_GW: &str = r#"
    "SubnetAddCommand": "ip route add \"$SUBNET\" via \"$PUBLIC_IP\" && ip route add \"$IPV6SUBNET\" via \"$PUBLIC_IPV6\"",
    "SubnetRemoveCommand": "ip route del \"$SUBNET\" via \"$PUBLIC_IP\"; ip route del \"$IPV6SUBNET\" via \"$PUBLIC_IPV6\"",
    "SubnetCheckCommand": "test -n \"$(ip route show \"$SUBNET\" via \"$PUBLIC_IP\")\" -a -n \"$(ip -6 route show \"$IPV6SUBNET\" via \"$PUBLIC_IPV6\")\""
"#;

mod ipv4 {
    flannel_core::network_conformance!(
        super::world(super::IPV4, super::HOST_GW),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        super::world(super::DUAL, super::DUAL_HOST_GW),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}
