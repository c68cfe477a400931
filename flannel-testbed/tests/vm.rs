//! What tests on another kernel rest on.

#![expect(clippy::disallowed_methods, reason = "ip(8) makes devices of any kind")]

use std::{path::Path, process::Command};

use flannel_testbed::{Blocks, Testbed};

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn pods_reach_each_other() {
    let testbed = Testbed::new(2).await.unwrap();
    let (one, two) = (testbed.host(0), testbed.host(1));
    let (block_one, block_two): (Blocks, Blocks) =
        ("10.244.1.0/24".parse().unwrap(), "10.244.2.0/24".parse().unwrap());
    let pod_one = one.add_pod(block_one).await.unwrap();
    let pod_two = two.add_pod(block_two).await.unwrap();
    assert!(pod_one.ping(pod_two.ip()).await.is_err());
    one.add_route(block_two, two).await.unwrap();
    two.add_route(block_one, one).await.unwrap();
    pod_one.ping(pod_two.ip()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn modules_are_loaded_when_they_are_needed() {
    let testbed = Testbed::new(1).await.unwrap();
    for kind in ["dummy", "ifb", "vrf table 7", "wireguard"] {
        let mut ip = Command::new("ip");
        ip.args(["link", "add", "new0", "type"]).args(kind.split(' '));
        testbed.host(0).run(ip).await.unwrap();
        let mut ip = Command::new("ip");
        ip.args(["link", "delete", "new0"]);
        testbed.host(0).run(ip).await.unwrap();
    }
    // What devices are not all of, and ipip, whose first device comes with it.
    for module in ["esp4", "fou", "ipip", "nft_queue", "sch_netem", "sctp", "xfrm_user"] {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg(module);
        testbed.host(0).run(modprobe).await.unwrap();
        assert!(Path::new("/sys/module").join(module).exists(), "{module}");
    }
}
