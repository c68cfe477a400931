use crate::support;

mod ipv4 {
    flannel_core::network_conformance!(
        super::support::world(super::support::IPV4),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

mod ipv6 {
    flannel_core::network_conformance!(
        super::support::world(super::support::IPV6),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        super::support::world(super::support::DUAL),
        #[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
    );
}
