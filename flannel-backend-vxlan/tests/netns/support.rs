use std::sync::Arc;

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, NetworkConfig};
use flannel_testbed::Host;

pub(crate) const IPV4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const IPV6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;

pub(crate) fn finder(host: &Host, config: &NetworkConfig) -> UplinkFinder {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    UplinkFinder::new(host.namespace(), config, &options).unwrap()
}

pub(crate) fn make(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(Vxlan::new(config, finder(host, config)).unwrap())
}

pub(crate) type Make = fn(&Host, &NetworkConfig) -> Arc<dyn Backend>;

pub(crate) async fn world(config: &str) -> KernelWorld<Make> {
    KernelWorld::new(config, make as Make).await
}
