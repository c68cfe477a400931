use crate::support;

mod dual {
    flannel_core::network_conformance!(
        super::support::world(super::support::DUAL),
        #[ignore = "needs another kernel: run ./ci.sh vm"]
    );
}

mod once {
    use super::support;

    mod ipv4 {
        flannel_core::network_conformance!(
            super::support::world(super::support::IPV4),
            #[ignore = "needs another kernel: run ./ci.sh vm"]
        );
    }

    mod ipv6 {
        flannel_core::network_conformance!(
            super::support::world(super::support::IPV6),
            #[ignore = "needs another kernel: run ./ci.sh vm"]
        );
    }

    /// One device for both families, over IPv6, with a preshared key.
    mod one {
        flannel_core::network_conformance!(
            super::support::world(super::support::ONE),
            #[ignore = "needs another kernel: run ./ci.sh vm"]
        );
    }
}
