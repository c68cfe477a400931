use std::str::from_utf8;

use flannel_core::{NetworkConfig, Subnet, choose};

/// A network configuration: what is read prints as something that reads the same, and the subnets that are chosen from it are
/// admitted by it.
pub fn config(bytes: &[u8]) {
    let Ok(config) = from_utf8(bytes).unwrap_or_default().parse::<NetworkConfig>() else { return };
    let printed = serde_json::to_string(&config).expect("a config prints as JSON");
    let again = printed.parse::<NetworkConfig>();
    let same = |again: &NetworkConfig| {
        (config.ipv4(), config.ipv6(), config.enable_nftables(), config.backend().kind())
            == (again.ipv4(), again.ipv6(), again.enable_nftables(), again.backend().kind())
    };
    assert!(again.as_ref().is_ok_and(same), "{printed} reads as {again:?}");

    for name in config.backend().options().names() {
        assert!(config.backend().options().raw(name).is_none_or(|raw| !raw.is_empty()));
    }
    let mut taken: Vec<Subnet> = Vec::new();
    let node = "n1".parse().expect("a name");
    for _ in 0..4 {
        let Ok(subnet) = choose(&config, &taken, &node, None) else { break };
        assert!(config.admits(&subnet), "{subnet}");
        assert!(taken.iter().all(|other| !other.overlaps(&subnet)), "{subnet} and {taken:?}");
        assert_eq!(subnet.to_string().parse(), Ok(subnet));
        taken.push(subnet);
    }
    assert!(!taken.is_empty(), "a network has a subnet");
}
