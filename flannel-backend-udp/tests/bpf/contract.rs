const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;

mod ipv4 {
    flannel_core::network_conformance!(
        crate::support::world(super::IPV4),
        #[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
    );
}

mod ipv6 {
    flannel_core::network_conformance!(
        crate::support::world(super::IPV6),
        #[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
    );
}

mod dual {
    flannel_core::network_conformance!(
        crate::support::world(super::DUAL),
        #[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
    );
}
