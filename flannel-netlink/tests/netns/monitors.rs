use flannel_netlink::{
    Monitor, Notice, Subject, Topic,
    state::{Address, Neighbour, Nexthop, Object, Route},
};

use crate::support::Host;

const PROTOCOL: u8 = 90;

/// Of which objects one monitor hears while all kinds of them come and go.
async fn heard(host: &mut Host, topics: &[Topic]) -> Vec<String> {
    let mut monitor = Monitor::open_for(&host.namespace, topics).unwrap();
    let eth0 = host.eth0.index;
    let via = |to: &str, gateway: &str| -> Object {
        let route = Route::new(to.parse().unwrap(), PROTOCOL);
        route.via_gateway(gateway.parse().unwrap(), eth0).into()
    };
    let gateway = "192.0.2.9".parse().unwrap();
    let objects: Vec<Object> = vec![
        Address::new(eth0, "192.0.2.2/24".parse().unwrap()).into(),
        Neighbour::new(eth0, gateway, "0e:00:00:00:00:09".parse().unwrap()).into(),
        Nexthop::new(7, eth0, gateway, PROTOCOL).into(),
        via("10.1.2.0/24", "192.0.2.9"),
        via("fd00:1::/64", "2001:db8::9"),
        via("0.0.0.0/0", "192.0.2.9"),
        via("::/0", "2001:db8::9"),
    ];
    let work = async {
        for object in &objects {
            host.put(*object).await;
        }
        for object in objects.iter().rev() {
            host.remove(*object).await;
        }
    };
    let ((), notices) = monitor.during(work).await.unwrap();
    let (mut came, mut went) = (Vec::new(), Vec::new());
    for notice in notices {
        let (list, object) = match notice {
            Notice::Added { subject: Subject::Object(object), .. } => (&mut came, object),
            Notice::Removed { subject: Subject::Object(object), .. } => (&mut went, object),
            other => panic!("{other:?}"),
        };
        let key = object.key();
        // A neighbour fails before it goes, and an address brings a route.
        if objects.iter().any(|object| object.key() == key) && !list.contains(&key) {
            list.push(key);
        }
    }
    assert!(came.iter().rev().eq(&went), "{came:?} came, {went:?} went");
    came.iter().map(ToString::to_string).collect()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_monitor_hears_of_its_topics_only() {
    let mut host = Host::new().await;
    let eth0 = host.eth0.index;
    let defaults = ["route 0.0.0.0/0", "route ::/0"];
    assert_eq!(heard(&mut host, &[Topic::DefaultRoutes]).await, defaults);
    let routes = ["route 10.1.2.0/24", "route fd00:1::/64", "route 0.0.0.0/0", "route ::/0"];
    assert_eq!(heard(&mut host, &[Topic::Routes]).await, routes);
    let both = [Topic::DefaultRoutes, Topic::Routes];
    assert_eq!(heard(&mut host, &both).await, routes);
    let address = [format!("address 192.0.2.2/24 on device {eth0}")];
    assert_eq!(heard(&mut host, &[Topic::Addresses]).await, address);
    let neighbour = [format!("neighbour 192.0.2.9 on device {eth0}")];
    assert_eq!(heard(&mut host, &[Topic::Neighbours]).await, neighbour);
    assert_eq!(heard(&mut host, &[Topic::Nexthops]).await, ["nexthop 7"]);
    assert_eq!(heard(&mut host, &[Topic::Links]).await, [""; 0]);
}
