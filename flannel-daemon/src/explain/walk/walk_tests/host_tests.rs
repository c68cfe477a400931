//! What the node and the kernel of this host say.

use super::*;

#[test]
fn a_strict_path_filter_is_broken_only_where_the_ways_differ() {
    let strict = |facts: &mut Facts| {
        facts.host.settings.insert("net/ipv4/conf/all/rp_filter".into(), "1".into());
    };
    let mut same = facts("vxlan");
    strict(&mut same);
    assert_eq!(walk(&same).broken, None);
    let (link, says) = first_broken("vxlan", |facts| {
        strict(facts);
        facts.host.addresses[0].link = ETH1;
    });
    assert_eq!(link, "settings");
    assert!(says.contains("come in on eth1, those to it leave on eth0"), "{says}");
}

#[test]
fn what_the_node_found_on_the_way_is_named() {
    let walked = |path: &str| {
        let status =
            format!(r#"{{"peers":[{{"subnet":"10.244.2.0-24","path":{{"ipv4":{path}}}}}]}}"#);
        let node = Some(Running::read(&serde_json::from_str(&status).unwrap()));
        walk(&Facts { node, ..facts("vxlan") })
    };
    let whole = walked(r#"{"state":"enough","mtu":null,"needed":1500}"#);
    assert_eq!(whole.broken, None);
    assert!(whole.passed.iter().any(|it| it.link == "path" && it.says.contains("1500 bytes")));
    let silent = walked(r#"{"state":"no_answer","mtu":null,"needed":1500}"#);
    assert!(silent.broken.is_none() && silent.passed.iter().all(|it| it.link != "path"));
    let less = walked(r#"{"state":"less","mtu":1400,"needed":1500}"#).broken.unwrap();
    assert_eq!(less.link, "path MTU");
    assert!(less.says.contains("is 1400, and 1500 are needed"), "{less:?}");
    assert!(less.remedy.contains("set MTU in the backend's configuration to 1400"), "{less:?}");
    let inside = r#"{"state":"enough","needed":1500,"overlay_checksums":"corrupted"}"#;
    let inside = walked(inside).broken.unwrap();
    assert_eq!(
        (&*inside.link, &*inside.remedy),
        ("checksums", "ethtool -K flannel.1 tx-checksum-ip-generic off")
    );
    let outside = r#"{"state":"enough","needed":1500,"underlay_checksums":"corrupted"}"#;
    let outside = walked(outside).broken.unwrap();
    assert_eq!(
        (&*outside.link, &*outside.remedy),
        ("checksums", "ethtool -K eth0 tx-checksum-ip-generic off")
    );
}

#[test]
fn a_lease_that_the_node_refuses_is_named_with_its_reason() {
    let reason = "its lease is refused: it covers this node's address".to_owned();
    let refused = [("10.244.2.0-24".to_owned(), reason)].into();
    let node = Some(Running { refused, ..Running::default() });
    let broken = walk(&Facts { node, ..facts("vxlan") }).broken.unwrap();
    assert_eq!(broken.link, "peer's lease");
    assert!(broken.says.contains("it covers this node's address"), "{broken:?}");
}

#[test]
fn a_route_of_others_that_goes_before_ours_is_to_be_removed_by_a_person() {
    let mut facts = facts("host-gw");
    let ours = &mut facts.host.routes[0];
    ours.metric = 100;
    let mut foreign = ours.via_gateway(ip("192.0.2.254"), ETH1);
    (foreign.metric, foreign.protocol) = (10, Route::BOOT);
    facts.host.routes.push(foreign);
    let broken = walk(&facts).broken.unwrap();
    assert_eq!(broken.link, "route");
    assert!(broken.says.contains("a route of others to 10.244.2.0/24"), "{broken:?}");
    assert_eq!(broken.remedy, "remove it: ip route del 10.244.2.0/24 metric 10");
}

#[test]
fn a_device_that_forwards_nothing_is_named_with_the_setting() {
    for (kind, device) in [("vxlan", "flannel/1"), ("host-gw", "eth0"), ("host-gw", "cni0")] {
        let path = format!("net/ipv4/conf/{}/forwarding", device.replace('/', "."));
        let (link, says) = first_broken(kind, |facts| {
            facts.host.settings.insert(path, "0".into());
        });
        assert_eq!(link, "settings");
        assert!(says.contains(&format!("net.ipv4.conf.{device}.forwarding is 0")), "{says}");
    }
}
