//! Which lease this host had before, whoever took it: flanneld may have chosen another address of the host than this program would.

use std::net::IpAddr;

use flannel_core::{Lease, Subnet};
use flannel_store::Record;

/// The lease of `held`, the subnet in this host's `subnet.env`, if it names one of this host's `addresses` and belongs to no node
/// that goes by a name.
pub(crate) fn previous_lease(
    records: &[Record],
    held: &Subnet,
    addresses: &[IpAddr],
) -> Option<Lease> {
    let record = records.iter().find(|record| record.subnet().as_ref() == Some(held))?;
    let lease = record.lease().ok()?;
    let is_named = lease.node.as_ref().is_some_and(|node| node.address().is_none());
    let is_ours = lease.attrs.address().is_some_and(|address| addresses.contains(&address));
    (is_ours && !is_named).then_some(lease)
}

#[cfg(test)]
mod tests {
    use flannel_core::{LeaseAttrs, NodeId};
    use flannel_store::Lifetime;

    use super::*;

    #[test]
    fn a_lease_that_names_any_address_of_this_host_and_its_subnet_is_ours() {
        let record = |key: &str, address: [u8; 4], owner: Option<&str>| Record {
            key: key.into(),
            value: Ok(
                LeaseAttrs { public_ip: Some(address.into()), ..LeaseAttrs::default() }.to_string()
            ),
            owner: owner.map(|owner| NodeId::new(owner).unwrap()),
            revision: 1,
            created: 1,
            lifetime: Lifetime::Bounded,
            token: 0,
        };
        let addresses = [[192, 0, 2, 1], [192, 0, 2, 100]].map(IpAddr::from);
        let held: Subnet = "10.244.7.0-24".parse().unwrap();
        let found = |record: Record| previous_lease(&[record], &held, &addresses).is_some();
        // flanneld has the address that keepalived brought, and this program would take that of DHCP.
        assert!(found(record("10.244.7.0-24", [192, 0, 2, 100], None)));
        assert!(found(record("10.244.7.0-24", [192, 0, 2, 1], Some("192.0.2.1"))));
        assert!(!found(record("10.244.7.0-24", [192, 0, 2, 9], None)), "another host's");
        assert!(!found(record("10.244.8.0-24", [192, 0, 2, 100], None)), "another subnet");
        assert!(
            !found(record("10.244.7.0-24", [192, 0, 2, 100], Some("worker-7"))),
            "a named node's"
        );
    }
}
