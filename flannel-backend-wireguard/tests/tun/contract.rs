mod ipv4 {
    flannel_core::network_conformance!(
        crate::lab::world(crate::lab::IPV4),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}

mod ipv6 {
    flannel_core::network_conformance!(
        crate::lab::world(crate::lab::IPV6),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        crate::lab::world(crate::lab::DUAL),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}

/// One device for both families, over IPv6, with a preshared key.
mod one {
    flannel_core::network_conformance!(
        crate::lab::world(crate::lab::ONE),
        #[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
    );
}
