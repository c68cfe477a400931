use flannel_core::SubnetEnv;

/// A `subnet.env`: what is read prints as something that reads the same, as far as it is printed.
pub fn subnet_env(bytes: &[u8]) {
    let env = SubnetEnv::parse(&String::from_utf8_lossy(bytes));
    let printed = env.to_string();
    let again = SubnetEnv::parse(&printed);
    assert_eq!(again.to_string(), printed);
    if printed.contains("FLANNEL_SUBNET=") {
        assert_eq!((again.network, again.subnet), (env.network, env.subnet));
    }
    if printed.contains("FLANNEL_IPV6_SUBNET=") {
        assert_eq!((again.ipv6_network, again.ipv6_subnet), (env.ipv6_network, env.ipv6_subnet));
    }
    assert_eq!((again.mtu, again.ip_masq), (env.mtu, env.ip_masq));
    if let Some(subnet) = env.held() {
        assert!(subnet.overlaps(&subnet));
    }
}
