//! Translates addresses in a self-test.

use std::{error::Error, net::IpAddr};

use async_trait::async_trait;
use flannel_backend_udp::Masquerade;
use flannel_netlink::Namespace;

use crate::world::run;

/// Translates with nft, or says that it did.
pub(crate) struct Nft {
    pub(crate) works: bool,
}

#[async_trait]
impl Masquerade for Nft {
    async fn masquerade(
        &self,
        namespace: &Namespace,
        source: IpAddr,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let family = if source.is_ipv4() { "ip" } else { "ip6" };
        let hook = "{ type nat hook postrouting priority 100 ; }";
        if self.works {
            run(namespace, &format!("nft add table {family} t"));
            run(namespace, &format!("nft add chain {family} t c {hook}"));
            run(
                namespace,
                &format!("nft add rule {family} t c {family} saddr {source} masquerade"),
            );
        }
        Ok(())
    }
}
