use flannel_netlink::{
    Connection, KernelError, LinkSpec, LinkSpecKind, ensure_link, list_addresses, list_forwarding,
    list_neighbours, list_nexthops, list_routes,
    state::{
        Address, AddressFilter, ForwardingEntry, IpFamily, Neighbour, Nexthop, Object, Route, Vxlan,
    },
};

use crate::support::Host;

const PROTOCOL: u8 = 90;

async fn everything(connection: &mut Connection, link: u32) -> Vec<Object> {
    let filter = AddressFilter { link: Some(link) };
    let mut found: Vec<Object> = Vec::new();
    found.extend(list_addresses(connection, filter).await.unwrap().into_iter().map(Object::from));
    found.extend(list_forwarding(connection, link).await.unwrap().into_iter().map(Object::from));
    found.extend(list_neighbours(connection, link).await.unwrap().into_iter().map(Object::from));
    found.extend(list_nexthops(connection).await.unwrap().into_iter().map(Object::from));
    for family in IpFamily::ALL {
        found.extend(
            list_routes(connection, Route::MAIN, family)
                .await
                .unwrap()
                .into_iter()
                .map(Object::from),
        );
        found.extend(
            list_routes(connection, 1000, family).await.unwrap().into_iter().map(Object::from),
        );
    }
    found
}

/// One object of every shape that this project writes.
fn samples(host: &Host, vxlan: u32) -> Vec<Object> {
    let eth0 = host.eth0.index;
    let mac = "0e:2a:11:22:33:44".parse().unwrap();
    let mut tunnel_address = Address::new(vxlan, "10.244.1.0/32".parse().unwrap());
    tunnel_address.scope = 253;
    let mut no_route = Address::new(eth0, "198.51.100.1/24".parse().unwrap());
    no_route.no_prefix_route = true;
    let mut onlink = Nexthop::new(7, vxlan, "10.244.2.0".parse().unwrap(), PROTOCOL);
    onlink.onlink = true;
    let mut onlink_v6 = Nexthop::new(8, vxlan, "fd00:2::".parse().unwrap(), PROTOCOL);
    onlink_v6.onlink = true;
    let route = |to: &str| Route::new(to.parse().unwrap(), PROTOCOL);
    let mut classic = route("10.244.5.0/24").via_gateway("10.244.5.0".parse().unwrap(), vxlan);
    classic.onlink = true;
    let mut classic_v6 = route("fd00:5::/64").via_gateway("fd00:5::".parse().unwrap(), vxlan);
    classic_v6.onlink = true;
    let mut other_table = route("10.244.6.0/24").via_gateway("192.0.2.6".parse().unwrap(), eth0);
    (other_table.table, other_table.metric) = (1000, 77);
    let mut other_table_v6 = route("fd00:6::/64").via_gateway("2001:db8::6".parse().unwrap(), eth0);
    (other_table_v6.table, other_table_v6.metric) = (1000, 77);
    let mut sourced = route("10.244.7.0/24").via_gateway("192.0.2.7".parse().unwrap(), eth0);
    sourced.source = Some("192.0.2.1".parse().unwrap());
    let small = |route: Route| Object::from(Route { mtu: Some(1300), ..route });
    vec![
        tunnel_address.into(),
        no_route.into(),
        ForwardingEntry::new(vxlan, mac, "192.0.2.2".parse().unwrap()).into(),
        Neighbour::new(vxlan, "10.244.2.0".parse().unwrap(), mac).into(),
        Neighbour::new(vxlan, "fd00:2::".parse().unwrap(), mac).into(),
        onlink.into(),
        onlink_v6.into(),
        // Of IPv4 routes through one object, the kernel gives all the settings of the first that has any.
        Nexthop::new(10, eth0, "192.0.2.10".parse().unwrap(), PROTOCOL).into(),
        Nexthop::new(11, eth0, "2001:db8::11".parse().unwrap(), PROTOCOL).into(),
        Nexthop::new(9, eth0, "192.0.2.9".parse().unwrap(), PROTOCOL).into(),
        route("10.244.2.0/24").via_nexthop(7).into(),
        route("fd00:2::/64").via_nexthop(8).into(),
        route("10.244.3.0/24").via_gateway("192.0.2.3".parse().unwrap(), eth0).into(),
        route("fd00:3::/64").via_gateway("2001:db8::3".parse().unwrap(), eth0).into(),
        route("10.244.4.0/24").direct(eth0).into(),
        route("fd00:4::/64").direct(eth0).into(),
        classic.into(),
        classic_v6.into(),
        other_table.into(),
        other_table_v6.into(),
        sourced.into(),
        route("10.244.0.0/16").blackhole().into(),
        route("fd00::/16").blackhole().into(),
        small(route("10.244.8.0/24").via_nexthop(10)),
        small(route("fd00:8::/64").via_nexthop(11)),
        small(route("10.244.9.0/24").via_gateway("192.0.2.9".parse().unwrap(), eth0)),
        small(route("fd00:9::/64").via_gateway("2001:db8::9".parse().unwrap(), eth0)),
    ]
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_object_is_listed_as_it_was_written_and_deleted_again() {
    let mut host = Host::new().await;
    let mut attributes = Vxlan::new(1);
    attributes.local = Some("192.0.2.1".parse().unwrap());
    let device = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(attributes));
    let (vxlan, _) = ensure_link(&mut host.connection, &device).await.unwrap();
    let (eth0, samples) = (host.eth0.index, samples(&host, vxlan.index));
    let mut before = everything(&mut host.connection, vxlan.index).await;
    before.extend(everything(&mut host.connection, eth0).await);

    for round in ["first", "again"] {
        for object in &samples {
            let result = host.connection.apply_one(object.replace()).await;
            assert_eq!(result, Ok(()), "{round} {object}");
        }
        let mut listed = everything(&mut host.connection, vxlan.index).await;
        listed.extend(everything(&mut host.connection, eth0).await);
        for object in &samples {
            let same_key: Vec<_> =
                listed.iter().filter(|other| other.key() == object.key()).collect();
            assert!(
                same_key.iter().any(|other| object.fits(other)),
                "{round} {object:?} is not {same_key:?}"
            );
        }
    }

    let deletes: Vec<_> = samples.iter().rev().map(Object::delete).collect();
    let results = host.connection.apply(&deletes).await;
    let failed: Vec<_> =
        samples.iter().rev().zip(results).filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let mut after = everything(&mut host.connection, vxlan.index).await;
    after.extend(everything(&mut host.connection, eth0).await);
    let left: Vec<_> =
        samples.iter().filter(|sample| after.iter().any(|it| it.key() == sample.key())).collect();
    assert!(left.is_empty(), "{left:?}");
    let lost: Vec<_> =
        before.iter().filter(|it| !after.iter().any(|other| other.key() == it.key())).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_refusal_carries_the_kernels_words() {
    let mut host = Host::new().await;
    let eth0 = host.eth0.index;
    let unreachable = Route::new("10.1.0.0/24".parse().unwrap(), PROTOCOL)
        .via_gateway("203.0.113.1".parse().unwrap(), eth0);
    let error: KernelError =
        host.connection.apply_one(Object::from(unreachable).replace()).await.unwrap_err();
    assert!(error.unreachable());
    assert_eq!(error.message.as_deref(), Some("Nexthop has invalid gateway"));
    assert_eq!(
        error.to_string(),
        "Network is unreachable (os error 101): Nexthop has invalid gateway"
    );
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn replacing_a_route_leaves_one() {
    let mut host = Host::new().await;
    let eth0 = host.eth0.index;
    let route = Route::new("10.1.0.0/24".parse().unwrap(), PROTOCOL);
    for last in 2..6 {
        let gateway = format!("192.0.2.{last}").parse().unwrap();
        host.put(route.via_gateway(gateway, eth0)).await;
    }
    let routes = list_routes(&mut host.connection, Route::MAIN, IpFamily::V4).await.unwrap();
    let ours: Vec<_> = routes.into_iter().filter(|route| route.protocol == PROTOCOL).collect();
    assert_eq!(ours, [route.via_gateway("192.0.2.5".parse().unwrap(), eth0)]);
    host.remove(ours[0]).await;
}
