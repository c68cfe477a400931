//! Leases of thousands of peers.

use flannel_core::{Lease, LeaseAttrs, RawJson};
use flannel_netlink::wireguard::PublicKey;

/// 5,000 leases at the address in `attrs`, one of which says this port.
pub(crate) fn leases(attrs: &LeaseAttrs, port: u16) -> impl Iterator<Item = Lease> {
    (0..5000_u16).map(move |n| {
        let port = if n == 7 { port } else { 51820 };
        let mut key = [7; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        let key = PublicKey::new(key);
        let data = format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#);
        let data = Some(RawJson::new(&data).unwrap());
        let subnet = format!("10.244.{}.{}-29", 64 + n / 32, n % 32 * 8);
        Lease::new(subnet.parse().unwrap(), LeaseAttrs { backend_data: data, ..attrs.clone() })
    })
}
