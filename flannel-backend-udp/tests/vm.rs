//! What `auto` means on other kernels.

#![expect(clippy::disallowed_methods, reason = "what administrators use is what has to be stood")]

use flannel_backend_udp::{Engine, SelfTest, Udp, uses_ebpf};
use flannel_core::Backend;
use flannel_testbed::eventually;

use crate::{nft::Nft, world::Cluster};

#[path = "bpf/nft.rs"]
mod nft;
#[path = "tun/support.rs"]
#[expect(dead_code, reason = "the tests of the userspace engine use all of it")]
mod support;
#[path = "bpf/world.rs"]
#[expect(dead_code, reason = "the tests of the eBPF engine use all of it")]
mod world;

/// What carries the packets of nodes that say nothing else.
const ENGINE: &str = "auto";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn auto_means_programs_on_kernels_of_the_table() {
    let cluster = Cluster::with(support::DUAL, |host, config| {
        let config = config.replace("userspace", ENGINE).parse().unwrap();
        support::udp(host, &config).with_masquerade(Nft { works: true })
    })
    .await;
    let passed = |udp: &Udp| udp.stats().self_test.expect("it has ended").expect("it passes");
    for host in [0, 1] {
        let backend = cluster.backend(host);
        let SelfTest { took, nat_not_tried, .. } = passed(&backend);
        println!("self-test of both families: {took:?}, {nat_not_tried:?}");
        assert!(took < SelfTest::LIMIT && nat_not_tried.is_none());
        assert!(uses_ebpf(&backend.advertise(None).await.unwrap()));
        assert!(matches!(backend.stats().engine, Some(Engine::Ebpf(_))));
    }
    assert!(cluster.reaches(0, 1).await);
    eventually(async || cluster.stats(0).by_ebpf > 0).await;
}
