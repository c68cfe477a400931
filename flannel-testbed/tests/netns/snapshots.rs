use flannel_netlink::{
    LinkSpec, LinkSpecKind, Notice, ensure_link,
    state::{ForwardingEntry, Neighbour, Object, Vxlan},
};

use super::support::{blocks, subnet, two_routed_pods};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_snapshot_shows_what_was_altered() {
    let (testbed, one, two) = two_routed_pods().await;
    let host = testbed.host(0);
    let before = host.snapshot().await.unwrap();
    assert!(
        before.lines().any(|line| line.starts_with("address 192.0.2.1/24 dev eth0")),
        "{before}"
    );
    one.ping(two.ip()).await.unwrap();
    assert_eq!(host.snapshot().await.unwrap(), before, "traffic alters nothing");

    let mut connection = host.connect().unwrap();
    let spec = LinkSpec::new("vx0", LinkSpecKind::Vxlan(Vxlan::new(7)));
    let (vxlan, _) = ensure_link(&mut connection, &spec).await.unwrap();
    let mac = "02:00:00:00:00:09".parse().unwrap();
    let peer = testbed.host(1).ip();
    for object in [
        Object::from(ForwardingEntry::new(vxlan.index, mac, peer)),
        Object::from(Neighbour::new(vxlan.index, "10.9.9.9".parse().unwrap(), mac)),
    ] {
        connection.apply_one(object.replace()).await.unwrap();
    }
    host.delete_route(blocks("10.244.1.0/24")).await.unwrap();
    let changed = before.difference(&host.snapshot().await.unwrap());
    for expected in [
        "- route 10.244.1.0/24 via 192.0.2.2 dev eth0",
        "+ device vx0 index",
        "+ forwarding 02:00:00:00:00:09 dev vx0 to 192.0.2.2",
        "+ neighbour 10.9.9.9 dev vx0 is 02:00:00:00:00:09",
    ] {
        let found = changed.iter().filter(|line| line.starts_with(expected)).count();
        assert_eq!(found, 1, "{expected}: {changed:#?}");
    }

    connection.apply_one(flannel_netlink::state::Link::delete(vxlan.index)).await.unwrap();
    host.add_route(subnet(1), testbed.host(1)).await.unwrap();
    let after = host.snapshot().await.unwrap();
    assert!(before.difference(&after).is_empty(), "{:#?}", before.difference(&after));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn changes_are_heard_and_quiet_is_quiet() {
    let (testbed, one, two) = two_routed_pods().await;
    let host = testbed.host(0);
    let (pong, changes) = host.changes_during(one.ping(two.ip())).await.unwrap();
    pong.unwrap();
    assert_eq!(changes, [], "neighbours are learned, nobody wrote");
    let delete = host.delete_route(blocks("10.244.1.0/24"));
    let (deleted, changes) = host.changes_during(delete).await.unwrap();
    assert_eq!(deleted.unwrap(), 1);
    assert!(matches!(changes[..], [Notice::Removed { .. }]), "{changes:?}");
}
