//! The translated flow of the udp backend's self-test.

use std::{error::Error, net::IpAddr};

use async_trait::async_trait;
use flannel_backend_udp::Masquerade;
use flannel_firewall::nftables::{Batch, Client, Expression, Family, Hook};
use flannel_netlink::Namespace;

/// Masquerades with nf_tables, as the node does.
#[derive(Debug)]
pub(crate) struct SelfTestNat;

#[async_trait]
impl Masquerade for SelfTestNat {
    async fn masquerade(
        &self,
        namespace: &Namespace,
        source: IpAddr,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let (family, offset) = match source {
            IpAddr::V4(_) => (Family::IPV4, SOURCE_IPV4),
            IpAddr::V6(_) => (Family::IPV6, SOURCE_IPV6),
        };
        let hook =
            Hook { kind: "nat".into(), number: Hook::POSTROUTING, priority: Hook::PRIORITY_SRCNAT };
        let mut rule = Expression::compare_address(offset, source.into(), false);
        rule.push(Expression::Masquerade { flags: 0 });
        let mut batch = Batch::default();
        batch.add_table(family, TABLE, 0, None);
        batch.add_chain(family, TABLE, CHAIN, Some(&hook), None);
        batch.add_rule(family, TABLE, CHAIN, &rule);
        Client::open(namespace)?.apply(&batch).await?;
        Ok(())
    }
}

/// Where the source is in an IPv4 header, bytes.
const SOURCE_IPV4: u32 = 12;
/// The same in an IPv6 header.
const SOURCE_IPV6: u32 = 8;
const TABLE: &str = "self-test";
const CHAIN: &str = "postrouting";
