//! Attributes and settings of our devices that others change.

use std::net::IpAddr;

use flannel_core::testing::network::{NetworkWorld, Nodes};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, Request, ensure_link, push_attribute,
    state::{Link, LinkKind, Vxlan},
};

use crate::support::{DUAL, Kernel, world};

/// Each attribute that the kernel lets anybody change, and what it is changed to.
type Change = fn(&mut Vxlan, u32);

/// `ip link set dev INDEX type vxlan id VNI dev PARENT`
fn bind(index: u32, vni: u32, parent: u32) -> Request {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let (mut data, mut info) = (Vec::new(), Vec::new());
    push_attribute(&mut data, 1, &vni.to_ne_bytes());
    push_attribute(&mut data, 3, &parent.to_ne_bytes());
    push_attribute(&mut info, 1, b"vxlan");
    push_attribute(&mut info, 2, &data);
    push_attribute(&mut body, 18, &info);
    Request::new(16, 0, &body)
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_attribute_that_others_change_is_put_back() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let mut kernel = Kernel::of(world.testbed().host(0));
    let eth0 = kernel.link("eth0").await.index;
    let other = |vxlan: &Vxlan| -> IpAddr {
        match vxlan.local.unwrap() {
            IpAddr::V4(_) => [192, 0, 2, 66].into(),
            IpAddr::V6(_) => "2001:db8::66".parse().unwrap(),
        }
    };
    let changes: [(&str, Change); 6] = [
        ("ttl", |it, _| it.ttl = 7),
        ("tos", |it, _| it.tos = 8),
        ("learning", |it, _| it.learning = true),
        ("dev", |it, eth0| it.parent = Some(eth0)),
        ("local", |_, _| {}),
        ("remote", |_, _| {}),
    ];
    for name in ["flannel.1", "flannel-v6.1"] {
        for (what, change) in changes {
            let before = kernel.link(name).await;
            let mut wrong = kernel.vxlan(name).await;
            change(&mut wrong, eth0);
            match what {
                "local" => wrong.local = Some(other(&wrong)),
                "remote" => wrong.group = Some(other(&wrong)),
                _ => {}
            }
            match what {
                "dev" => kernel.0.apply_one(bind(before.index, wrong.vni, eth0)).await.unwrap(),
                _ => {
                    let mut spec = LinkSpec::new(name, LinkSpecKind::Vxlan(wrong));
                    spec.no_link_local = true;
                    ensure_link(&mut kernel.0, &spec).await.unwrap();
                }
            }
            let mut now = kernel.link(name).await;
            assert_eq!(now.kind, LinkKind::Vxlan(wrong), "{what} of {name} is not altered");
            let right = nodes.repair(async || {
                now = kernel.link(name).await;
                // The kernel does not unbind a device, which has to be made anew.
                let index = if what == "dev" { now.index } else { before.index };
                now == Link { index, ..before.clone() }
            });
            assert!(right.await, "{what} of {name}: {now:?} instead of {before:?}");
        }
    }
    assert!(world.reaches(0, 1).await);
    assert_eq!(nodes.sync(0).await.writes(), 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn forwarding_that_others_switch_off_is_back() {
    let world = world(DUAL).await;
    let mut nodes = Nodes::start(&world).await;
    let namespace = world.testbed().host(0).namespace();
    for path in ["ipv4/conf/flannel.1/forwarding", "ipv6/conf/flannel-v6.1/forwarding"] {
        let path = format!("/proc/sys/net/{path}");
        let read = || namespace.run(|| std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(read().trim(), "1", "{path}: the hosts forward");
        namespace.run(|| std::fs::write(&path, "0").unwrap()).unwrap();
        assert!(nodes.repair(async || read().trim() == "1").await, "{path}");
    }
    assert!(world.reaches(0, 1).await);
}
