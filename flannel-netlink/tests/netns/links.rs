use flannel_netlink::{
    Connection, Ensured, LinkChange, LinkSpec, LinkSpecKind, Message, alter_link, delete_link,
    ensure_link, link_by_index, link_by_name, list_addresses, list_links,
    state::{AddressFilter, Link, LinkKind, Vxlan},
};

use crate::support::{Host, fresh};

fn vxlan(vni: u32) -> Vxlan {
    let mut vxlan = Vxlan::new(vni);
    vxlan.local = Some("192.0.2.1".parse().unwrap());
    vxlan
}

fn spec(vxlan: Vxlan) -> LinkSpec {
    let mut spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
    spec.mac = Some("0e:2a:11:22:33:44".parse().unwrap());
    spec.mtu = Some(1450);
    spec
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_vxlan_device_is_made_as_asked_and_then_adopted() {
    let mut host = Host::new().await;
    let mut wanted = vxlan(1);
    (wanted.port, wanted.gbp, wanted.parent) = (Some(8473), true, Some(host.eth0.index));
    let (made, how) = ensure_link(&mut host.connection, &spec(wanted)).await.unwrap();
    assert_eq!(how, Ensured::Created);
    assert_eq!(made.kind, LinkKind::Vxlan(wanted));
    assert_eq!((made.mtu, made.up), (1450, true));
    assert_eq!(made.mac, spec(wanted).mac);
    let queue = |message: &Message<'_>| {
        let (_, attributes) = message.split(16)?;
        attributes.filter(|it| it.kind == IFLA_TXQLEN).find_map(|it| it.u32())
    };
    let queue = host.connection.get(&Link::by_index(made.index), queue).await;
    assert_eq!(queue, Ok(0), "as flannel makes it");
    let (again, how) = ensure_link(&mut host.connection, &spec(wanted)).await.unwrap();
    assert_eq!((again, how), (made, Ensured::Adopted));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_ipv6_vxlan_device_stands_beside_the_ipv4_one() {
    let mut host = Host::new().await;
    ensure_link(&mut host.connection, &spec(vxlan(1))).await.unwrap();
    let mut v6 = spec(vxlan(1));
    v6.name = "flannel-v6.1".to_owned();
    let mut attributes = vxlan(1);
    attributes.local = Some("2001:db8::1".parse().unwrap());
    v6.kind = LinkSpecKind::Vxlan(attributes);
    let (made, _) = ensure_link(&mut host.connection, &v6).await.unwrap();
    let LinkKind::Vxlan(made) = made.kind else { panic!("{made:?}") };
    assert_eq!(made.local, attributes.local);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_can_change_is_altered_in_place() {
    let mut host = Host::new().await;
    let (before, _) = ensure_link(&mut host.connection, &spec(vxlan(1))).await.unwrap();
    let mut wanted = vxlan(1);
    wanted.learning = true;
    wanted.local = Some("192.0.2.7".parse().unwrap());
    let mut wanted = spec(wanted);
    (wanted.mtu, wanted.up, wanted.mac) =
        (Some(1400), false, Some("0e:2a:11:22:33:55".parse().unwrap()));
    let (after, how) = ensure_link(&mut host.connection, &wanted).await.unwrap();
    assert_eq!(how, Ensured::Altered);
    assert_eq!(
        (after.index, after.mtu, after.up, after.mac),
        (before.index, 1400, false, wanted.mac)
    );
    let LinkKind::Vxlan(attributes) = after.kind else { panic!("{after:?}") };
    assert!(attributes.learning);
    assert_eq!(attributes.local, Some("192.0.2.7".parse().unwrap()));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_cannot_change_is_made_anew() {
    let mut host = Host::new().await;
    let (bridge, _) =
        ensure_link(&mut host.connection, &LinkSpec::new("flannel.1", LinkSpecKind::Bridge))
            .await
            .unwrap();
    let (first, how) = ensure_link(&mut host.connection, &spec(vxlan(1))).await.unwrap();
    assert_eq!(how, Ensured::Recreated);
    assert_ne!(first.index, bridge.index);
    let (second, how) = ensure_link(&mut host.connection, &spec(vxlan(2))).await.unwrap();
    assert_eq!(how, Ensured::Recreated);
    assert_ne!(second.index, first.index);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_veth_pair_spans_namespaces() {
    let mut host = Host::new().await;
    let other = fresh();
    let mut there = Connection::open(&other).unwrap();
    let pair = LinkSpecKind::Veth { peer: "eth0".to_owned(), peer_namespace: Some(other) };
    let (here, _) = ensure_link(&mut host.connection, &LinkSpec::new("veth1", pair)).await.unwrap();
    let far = link_by_name(&mut there, "eth0").await.unwrap().unwrap();
    assert_eq!(far.kind, LinkKind::Veth);
    assert!(!far.up && !here.running);
    alter_link(&mut there, far.index, &LinkChange { up: Some(true), ..Default::default() })
        .await
        .unwrap();
    assert!(link_by_index(&mut host.connection, here.index).await.unwrap().unwrap().running);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_is_renamed_moved_and_made_a_port() {
    let mut host = Host::new().await;
    let other = fresh();
    let mut there = Connection::open(&other).unwrap();
    let (bridge, _) =
        ensure_link(&mut there, &LinkSpec::new("br0", LinkSpecKind::Bridge)).await.unwrap();
    let pair = LinkSpecKind::Veth { peer: "b".to_owned(), peer_namespace: None };
    let (link, _) = ensure_link(&mut host.connection, &LinkSpec::new("a", pair)).await.unwrap();
    let change =
        LinkChange { name: Some("port0".to_owned()), namespace: Some(other), ..Default::default() };
    alter_link(&mut host.connection, link.index, &change).await.unwrap();
    assert_eq!(link_by_name(&mut host.connection, "a").await, Ok(None));
    let port = link_by_name(&mut there, "port0").await.unwrap().unwrap();
    let change =
        LinkChange { controller: Some(bridge.index), up: Some(true), ..Default::default() };
    alter_link(&mut there, port.index, &change).await.unwrap();
    let port = link_by_name(&mut there, "port0").await.unwrap().unwrap();
    assert_eq!((port.controller, port.up), (Some(bridge.index), true));
    let longer = LinkChange { queue: Some(port.queue + 77), ..Default::default() };
    alter_link(&mut there, port.index, &longer).await.unwrap();
    let altered = link_by_name(&mut there, "port0").await.unwrap().unwrap();
    assert_eq!(altered.queue, port.queue + 77);
    let names: Vec<_> =
        list_links(&mut there).await.unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_without_link_local_address() {
    let mut host = Host::new().await;
    let mut without = spec(vxlan(1));
    without.no_link_local = true;
    let (link, how) = ensure_link(&mut host.connection, &without).await.unwrap();
    assert_eq!((how, link.up, link.link_local), (Ensured::Created, true, false));
    let filter = AddressFilter { link: Some(link.index) };
    assert_eq!(list_addresses(&mut host.connection, filter).await, Ok(vec![]));
    let (again, how) = ensure_link(&mut host.connection, &without).await.unwrap();
    assert_eq!((again, how), (link, Ensured::Adopted));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_device_that_makes_link_local_addresses_is_told_to_stop() {
    let mut host = Host::new().await;
    let (with, _) = ensure_link(&mut host.connection, &spec(vxlan(1))).await.unwrap();
    assert!(with.link_local);
    let mut without = spec(vxlan(1));
    without.no_link_local = true;
    let (link, how) = ensure_link(&mut host.connection, &without).await.unwrap();
    assert_eq!((how, link.index, link.link_local), (Ensured::Altered, with.index, false));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn deleting_twice_is_fine() {
    let mut host = Host::new().await;
    delete_link(&mut host.connection, host.eth0.index).await.unwrap();
    delete_link(&mut host.connection, host.eth0.index).await.unwrap();
    assert_eq!(link_by_index(&mut host.connection, host.eth0.index).await, Ok(None));
}

const IFLA_TXQLEN: u16 = 13;
