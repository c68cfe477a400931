//! What `explain` sees of two hosts where everything is in order.

use super::*;

pub(super) const ETH0: u32 = 2;
pub(super) const ETH1: u32 = 3;
pub(super) const CNI0: u32 = 4;
pub(super) const FLANNEL: u32 = 5;
pub(super) const MAC: [u8; 6] = [0x0e, 0x2a, 0, 0, 0, 2];

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn link(index: u32, name: &str, kind: LinkKind, mtu: u32) -> Link {
    Link {
        index,
        name: name.into(),
        kind,
        mac: Some(MacAddress::new([0x0e, 0x2a, 0, 0, 0, 1])),
        mtu,
        queue: 0,
        up: true,
        running: true,
        loopback: false,
        controller: None,
        parent: None,
        link_local: false,
    }
}

pub(super) fn record(key: &str, value: &str) -> Record {
    Record {
        key: key.into(),
        value: Ok(value.into()),
        owner: None,
        revision: 1,
        created: 1,
        lifetime: Lifetime::Bounded,
        token: 0,
    }
}

pub(super) fn lease(public: u8, kind: &str) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{public}","PublicIPv6":null,"BackendType":"{kind}","BackendData":{{"VNI":1,"VtepMAC":"0e:2a:00:00:00:0{public}"}}}}"#
    )
}

/// Two hosts in order: 10.244.1.0/24 here at 192.0.2.1, and 10.244.2.0/24 at 192.0.2.2.
pub(super) fn facts(kind: &str) -> Facts {
    let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
    let mut vxlan = Vxlan::new(1);
    (vxlan.port, vxlan.local) = (Some(8472), Some(ip("192.0.2.1")));
    let block = "10.244.2.0/24".parse().unwrap();
    let (hop, route) = match kind {
        "vxlan" => {
            let gateway = ip("10.244.2.0");
            let hop = Hop { link: FLANNEL, gateway: Some(gateway) };
            (hop, Route::new(block, 241).via_gateway(gateway, FLANNEL))
        }
        _ => {
            let hop = Hop { link: ETH0, gateway: Some(ip("192.0.2.2")) };
            (hop, Route::new(block, 241).via_nexthop(7))
        }
    };
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\n";
    let mac = MacAddress::new(MAC);
    let direct = |link| Ok(Hop { link, gateway: None });
    let host = Host {
        subnet_file: "/run/flannel/subnet.env".into(),
        env: SubnetEnv::parse(env),
        links: vec![
            link(ETH0, "eth0", LinkKind::Veth, 1500),
            link(ETH1, "eth1", LinkKind::Veth, 1500),
            link(CNI0, "cni0", LinkKind::Bridge, 1450),
            link(FLANNEL, "flannel.1", LinkKind::Vxlan(vxlan), 1450),
        ],
        addresses: vec![
            Address::new(ETH0, "192.0.2.1/24".parse().unwrap()),
            Address::new(CNI0, "10.244.1.1/24".parse().unwrap()),
            Address::new(FLANNEL, "10.244.1.0/32".parse().unwrap()),
        ],
        routes: vec![route],
        nexthops: vec![Nexthop::new(7, ETH0, ip("192.0.2.2"), 241)],
        neighbours: vec![Neighbour::new(FLANNEL, ip("10.244.2.0"), mac)],
        forwarding: vec![ForwardingEntry::new(FLANNEL, mac, ip("192.0.2.2"))],
        hops: [
            (ip("10.244.1.7"), direct(CNI0)),
            (ip("10.244.1.8"), direct(CNI0)),
            (ip("10.244.2.9"), Ok(hop)),
            (ip("192.0.2.2"), direct(ETH0)),
        ]
        .into(),
        settings: [("net/ipv4/ip_forward".into(), "1".into())].into(),
    };
    Facts {
        source: ip("10.244.1.7"),
        destination: ip("10.244.2.9"),
        stored: Stored {
            place: "/store/config".into(),
            config: config.parse().unwrap(),
            records: vec![
                record("10.244.1.0-24", &lease(1, kind)),
                record("10.244.2.0-24", &lease(2, kind)),
            ],
        },
        host,
        findings: Ok(Vec::new()),
        node: None,
        answers: Some(Answers {
            peer: Some(Answer::Alive),
            large: Some((1500, Answer::Alive)),
            tunnel_port: (kind == "vxlan").then_some(Answer::Silent),
            network: Some(Answer::Alive),
            pod: Some(Answer::Alive),
        }),
    }
}
