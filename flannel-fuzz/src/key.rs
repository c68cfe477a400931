use flannel_core::{NodeId, Subnet};

/// A subnet key, a node id, or neither: each subnet has one key, so that it has one lease.
pub fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(subnet) = text.parse::<Subnet>() {
        assert_eq!(subnet.to_string(), text);
        assert!(subnet.overlaps(&subnet));
        assert_eq!(Subnet::new(subnet.ipv4(), subnet.ipv6()), Some(subnet));
    }
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.as_str(), text);
        node.spread();
    }
}
