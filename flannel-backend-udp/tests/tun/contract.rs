mod ipv4 {
    flannel_core::network_conformance!(
        crate::support::world(crate::support::IPV4),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}

mod ipv6 {
    flannel_core::network_conformance!(
        crate::support::world(crate::support::IPV6),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        crate::support::world(crate::support::DUAL),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}
