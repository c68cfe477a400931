use flannel_core::SubnetEnv;
use flannel_firewall::{Effect, Finding};
use flannel_netlink::state::{
    Address, ForwardingEntry, Link, LinkKind, MacAddress, Neighbour, Nexthop, Route, Via, Vxlan,
};
use flannel_store::{Lifetime, Record};
use proptest::prelude::*;

use super::*;
use crate::explain::facts::{Answer, Answers, Hop, Host, InTheWay, Running, Stored};

mod host_tests;
mod sample;

use sample::{ETH0, ETH1, FLANNEL, MAC, facts, ip, lease, record};

/// The name of a link, which nothing was allocated for.
fn name(link: Cow<'static, str>) -> &'static str {
    match link {
        Cow::Borrowed(name) => name,
        Cow::Owned(name) => panic!("{name} was allocated"),
    }
}

/// What is broken in the order that `breaks` makes of the facts.
fn first_broken(kind: &str, breaks: impl FnOnce(&mut Facts)) -> (&'static str, String) {
    let mut facts = facts(kind);
    breaks(&mut facts);
    let broken = walk(&facts).broken.expect("something is broken");
    assert!(!broken.remedy.is_empty() && !broken.says.contains('\n'));
    (name(broken.link), broken.says)
}

#[test]
fn a_way_in_order_holds_to_the_pod_from_both_ends() {
    for (kind, links) in [("vxlan", 14), ("host-gw", 11)] {
        let mut facts = facts(kind);
        let there = walk(&facts);
        assert_eq!(there.broken, None, "{kind}");
        assert_eq!(there.passed.len(), links, "{there:?}");
        assert_eq!(there.passed.last().unwrap().link, "far pod");
        (facts.source, facts.destination) = (facts.destination, facts.source);
        let back = walk(&facts);
        assert_eq!((back.passed, back.broken), (there.passed, None));
    }
}

#[test]
fn before_the_peer_was_asked_only_this_host_is_judged() {
    let mut facts = facts("vxlan");
    facts.answers = None;
    let explanation = walk(&facts);
    assert_eq!((explanation.passed.len(), explanation.broken), (12, None));
}

#[test]
fn two_pods_of_this_host_need_no_peer() {
    let mut facts = facts("vxlan");
    facts.destination = ip("10.244.1.8");
    facts.stored.records.pop();
    facts.host.routes.clear();
    assert_eq!(walk(&facts).broken, None);
}

#[test]
fn a_broken_link_is_named_with_what_is_wrong_there() {
    type Break = fn(&mut Facts);
    let cases: [(&str, &str, &str, Break); 38] = [
        ("vxlan", "network", "10.9.0.1 is outside of the network 10.244.0.0/16", |f| {
            f.destination = ip("10.9.0.1")
        }),
        ("vxlan", "network", "the network has no IPv6", |f| {
            (f.source, f.destination) = (ip("fd00::1"), ip("fd00::2"));
        }),
        ("vxlan", "own subnet", "/run/flannel/subnet.env names no subnet", |f| {
            f.host.env = SubnetEnv::parse("")
        }),
        ("vxlan", "own subnet", "neither address is in this host's subnet 10.244.1.0/24", |f| {
            f.source = ip("10.244.2.8")
        }),
        ("vxlan", "own lease", "no lease has this host's subnet 10.244.1.0/24", |f| {
            drop(f.stored.records.remove(0))
        }),
        ("vxlan", "own lease", "the lease 10.244.1.0-24 has lapsed", |f| {
            f.stored.records[0].lifetime = Lifetime::Lapsed
        }),
        ("vxlan", "own lease", "the record 10.244.1.0-24 is not a lease", |f| {
            f.stored.records[0].value = Ok("{".into())
        }),
        ("vxlan", "own lease", "says no address", |f| f.stored.records[0].value = Ok("{}".into())),
        ("host-gw", "own lease", "to 192.0.2.9, which is no address of this host", |f| {
            f.stored.records[0].value = Ok(lease(9, "host-gw"))
        }),
        ("vxlan", "peer's lease", "no lease has 10.244.2.9", |f| drop(f.stored.records.pop())),
        (
            "vxlan",
            "peer's lease",
            r#"of the backend "host-gw", and the network's is "vxlan""#,
            |f| f.stored.records[1].value = Ok(lease(2, "host-gw")),
        ),
        ("vxlan", "peer's lease", "which is this host's own address", |f| {
            f.stored.records[1].value = Ok(lease(1, "vxlan"))
        }),
        ("vxlan", "peer's lease", "no VtepMAC", |f| {
            f.stored.records[1].value =
                Ok(r#"{"PublicIP":"192.0.2.2","BackendType":"vxlan"}"#.into());
        }),
        (
            "vxlan",
            "pod",
            "packets to the pod 10.244.1.7 leave this host through 192.0.2.254 on eth0",
            |f| {
                let hop = Hop { link: ETH0, gateway: Some(ip("192.0.2.254")) };
                f.host.hops.insert(ip("10.244.1.7"), Ok(hop));
            },
        ),
        ("vxlan", "pod", "cni0, which leads to the pod 10.244.1.7, has no carrier", |f| {
            f.host.links[2].running = false
        }),
        (
            "vxlan",
            "underlay",
            "knows no way to the peer at 192.0.2.2: Network is unreachable",
            |f| {
                f.host.hops.insert(ip("192.0.2.2"), Err("Network is unreachable".into()));
            },
        ),
        ("vxlan", "underlay", "eth0, which leads to the peer at 192.0.2.2, is down", |f| {
            (f.host.links[0].up, f.host.links[0].running) = (false, false);
        }),
        ("vxlan", "underlay", "leads into the tunnel", |f| {
            f.host.hops.insert(ip("192.0.2.2"), Ok(Hop { link: FLANNEL, gateway: None }));
        }),
        (
            "host-gw",
            "underlay",
            "is behind 192.0.2.254, and host-gw needs all hosts on one link",
            |f| {
                let hop = Hop { link: ETH0, gateway: Some(ip("192.0.2.254")) };
                f.host.hops.insert(ip("192.0.2.2"), Ok(hop));
            },
        ),
        ("host-gw", "underlay", "192.0.2.2 does not say its Ethernet address on eth0", |f| {
            let unknown =
                Neighbour { link: ETH0, address: ip("192.0.2.2"), mac: None, permanent: false };
            f.host.neighbours.push(unknown);
            f.answers = Some(Answers { peer: Some(Answer::Silent), ..Answers::default() });
        }),
        (
            "vxlan",
            "underlay",
            "packets to the peer at 192.0.2.2 come back: No route to host",
            |f| {
                f.answers.as_mut().unwrap().peer =
                    Some(Answer::Unreachable("No route to host".into()));
            },
        ),
        ("vxlan", "device", "there is no device flannel.1", |f| drop(f.host.links.pop())),
        ("vxlan", "device", "flannel.1 is no VXLAN device", |f| {
            f.host.links[3].kind = LinkKind::Bridge
        }),
        ("vxlan", "device", "flannel.1 is down", |f| f.host.links[3].up = false),
        ("vxlan", "device", "flannel.1 takes packets of 1500 bytes, expected 1450", |f| {
            f.host.links[3].mtu = 1500
        }),
        ("vxlan", "device", "and our lease tells peers 0e:2a:00:00:00:01", |f| {
            f.host.links[3].mac = Some(MacAddress::new(MAC))
        }),
        ("vxlan", "device", "flannel.1 does not have the address 10.244.1.0", |f| {
            f.host.addresses.pop();
        }),
        ("vxlan", "route", "there is no route to 10.244.2.0/24", |f| f.host.routes.clear()),
        (
            "vxlan",
            "route",
            "leads through 10.244.2.0 on eth0, expected through 10.244.2.0 on flannel.1",
            |f| f.host.routes[0].link = Some(ETH0),
        ),
        ("vxlan", "route", "the route to 10.244.2.0/24 drops packets", |f| {
            f.host.routes[0] = f.host.routes[0].blackhole()
        }),
        ("host-gw", "route", "leads to the next hop 7, which is none", |f| f.host.nexthops.clear()),
        (
            "vxlan",
            "route",
            "packets to 10.244.2.9 go straight to eth1, past the route to 10.244.2.0/24",
            |f| {
                f.host.hops.insert(ip("10.244.2.9"), Ok(Hop { link: ETH1, gateway: None }));
            },
        ),
        ("vxlan", "neighbour", "flannel.1 has no Ethernet address for 10.244.2.0", |f| {
            f.host.neighbours.clear()
        }),
        ("vxlan", "neighbour", "and the peer's is 0e:2a:00:00:00:02", |f| {
            f.host.neighbours[0].mac = Some(MacAddress::new([2; 6]))
        }),
        (
            "vxlan",
            "forwarding entry",
            "does not know where to send frames for 0e:2a:00:00:00:02",
            |f| f.host.forwarding.clear(),
        ),
        ("vxlan", "forwarding entry", "to 192.0.2.7, and the peer is at 192.0.2.2", |f| {
            f.host.forwarding[0].remote = Some(ip("192.0.2.7"))
        }),
        ("vxlan", "settings", "net.ipv4.ip_forward is 0", |f| {
            f.host.settings.insert("net/ipv4/ip_forward".into(), "0".into());
        }),
        ("vxlan", "settings", "net.ipv4.conf.flannel/1.forwarding is 0", |f| {
            f.host.settings.insert("net/ipv4/conf/flannel.1/forwarding".into(), "0".into());
        }),
    ];
    for (kind, link, words, breaks) in cases {
        let (broken, says) = first_broken(kind, breaks);
        assert_eq!(broken, link, "{says}");
        assert!(says.contains(words), "{says:?} has no {words:?}");
    }
}

#[test]
fn the_remedy_depends_on_the_node_that_runs() {
    let remedy = |node: Option<Running>| {
        let mut facts = facts("vxlan");
        facts.host.routes.clear();
        facts.node = node;
        walk(&facts).broken.unwrap().remedy
    };
    assert!(remedy(None).starts_with("no flannel-node runs here: start it"));
    assert!(remedy(Some(Running::default())).contains("within a second"));
    let status = r#"{"missing":["lease: none is held"],"last_sync":null}"#;
    let lacking = Running::read(&serde_json::from_str(status).unwrap());
    assert!(remedy(Some(lacking)).ends_with("lacks something itself: lease: none is held"));
}

#[test]
fn rules_that_the_node_cannot_keep_are_a_broken_link() {
    let status = |faults: &str| {
        let status = format!(
            r#"{{"missing":[],"firewall":{{"mode":"nftables","faults":[{faults}],"notes":["a chain drops"]}}}}"#
        );
        Running::read(&serde_json::from_str(&status).unwrap())
    };
    let mut whole = facts("vxlan");
    whole.node = Some(status(""));
    let walked = walk(&whole);
    assert_eq!(walked.broken, None);
    let firewall = walked.passed.iter().find(|passed| passed.link == "firewall").unwrap();
    let none = "no rule here is known to drop or masquerade these packets";
    let expected = format!("{none}; the node keeps its own with nftables; a chain drops");
    assert_eq!(firewall.says, expected);
    let told = first_broken("vxlan", |facts| {
        facts.node = Some(status(r#""cannot add a rule: no memory""#));
    });
    let says = "the rules of the network are not as they should be: cannot add a rule: no memory";
    assert_eq!(told, ("firewall", says.to_owned()));
}

#[test]
fn rules_that_are_in_the_way_are_a_broken_link_and_those_that_may_be_are_told() {
    let finding = |effect, certain| {
        let finding = Finding::new(effect, certain, "chain FORWARD of table ip filter", "rule 3");
        Ok(vec![InTheWay { from: ip("10.244.2.9"), to: ip("10.244.1.7"), port: None, finding }])
    };
    let told = first_broken("vxlan", |it| it.findings = finding(Effect::Drops, true));
    let says = "from 10.244.2.9 to 10.244.1.7: chain FORWARD of table ip filter drops these packets by rule 3";
    assert_eq!(told, ("firewall", says.to_owned()));
    let told = first_broken("vxlan", |it| it.findings = finding(Effect::Masquerades, true));
    assert!(told.1.ends_with("masquerades these packets by rule 3"), "{told:?}");
    let told = first_broken("vxlan", |it| {
        let finding =
            Finding::new(Effect::Drops, true, "chain INPUT of table ip filter", "its policy");
        let (from, to) = (ip("192.0.2.2"), ip("192.0.2.1"));
        it.findings = Ok(vec![InTheWay { from, to, port: Some(8472), finding }]);
    });
    let says = "encapsulated, from 192.0.2.2 to 192.0.2.1, UDP port 8472: chain INPUT of table ip filter drops these packets by its policy";
    assert_eq!(told, ("firewall", says.to_owned()));
    let says = |findings| {
        let mut facts = facts("vxlan");
        facts.findings = findings;
        let walked = walk(&facts);
        assert_eq!(walked.broken, None);
        walked.passed.into_iter().find(|passed| passed.link == "firewall").unwrap().says
    };
    assert!(says(finding(Effect::Drops, false)).ends_with("may drop these packets by rule 3"));
    let unread = says(Err("cannot list the rules: Operation not permitted".into()));
    assert_eq!(
        unread,
        "the rules of this host were not looked at: cannot list the rules: Operation not permitted"
    );
}

#[test]
fn answers_tell_which_side_of_the_peer_is_broken() {
    use Answer::{Alive, Silent, Unreachable};
    let tell = |peer: Answer, tunnel_port, network, pod| {
        let mut facts = facts("vxlan");
        facts.answers = Some(Answers {
            peer: Some(peer),
            large: None,
            tunnel_port: Some(tunnel_port),
            network: Some(network),
            pod: Some(pod),
        });
        walk(&facts).broken.map(|broken| (name(broken.link), broken.says))
    };
    let broken = |link, says: &str| Some((link, says.to_owned()));
    let nobody = "the peer at 192.0.2.2 is up, and nothing there takes the packets of flannel.1";
    assert_eq!(tell(Alive, Alive, Silent, Silent), broken("peer", nobody));
    let one_way = "the peer at 192.0.2.2 answers this host itself, but not through the network";
    assert_eq!(tell(Alive, Silent, Silent, Silent), broken("peer", one_way));
    let dead = "nothing comes back from the peer at 192.0.2.2";
    assert_eq!(tell(Silent, Silent, Silent, Silent), broken("underlay", dead));
    let no_pod = "the peer at 192.0.2.2 has no pod 10.244.2.9: No route to host";
    let unreachable = || Unreachable("No route to host".into());
    assert_eq!(tell(Alive, Silent, Alive, unreachable()), broken("far pod", no_pod));
    assert_eq!(tell(Alive, Silent, Alive, Silent), None);
    assert_eq!(tell(Silent, Silent, Silent, Alive), None, "the pod's answer proves the whole way");
}

#[test]
fn one_route_to_all_peers_is_followed_too() {
    let mut facts = facts("udp");
    facts.stored.records =
        vec![record("10.244.1.0-24", &lease(1, "")), record("10.244.2.0-24", &lease(2, ""))];
    let missing = walk(&facts).broken.unwrap();
    assert_eq!(missing.says, "there is no route to 10.244.0.0/16");
    facts.host.routes = vec![Route::new("10.244.0.0/16".parse().unwrap(), 241).direct(ETH1)];
    let elsewhere = walk(&facts).broken.unwrap();
    assert!(elsewhere.says.contains("past the route to 10.244.0.0/16"), "{elsewhere:?}");
    facts.host.hops.insert(facts.destination, Ok(Hop { link: ETH1, gateway: None }));
    assert_eq!(walk(&facts).broken, None);
    facts.stored.records[1] = record("10.244.2.0-24", &lease(2, "vxlan"));
    assert_eq!(walk(&facts).broken.unwrap().link, "peer's lease");
}

#[test]
fn a_way_that_takes_less_than_pods_send_is_broken() {
    for (answer, words) in [
        (Answer::Silent, "packets of 1500 bytes to the peer at 192.0.2.2 get lost on the way"),
        (
            Answer::TooLarge,
            "packets of 1500 bytes to the peer at 192.0.2.2 are larger than the way takes",
        ),
    ] {
        let told = first_broken("vxlan", |facts| {
            facts.answers.as_mut().unwrap().large = Some((1500, answer));
        });
        assert_eq!(told, ("path MTU", words.to_owned()));
    }
    let mut filtered = facts("vxlan");
    let answers = filtered.answers.as_mut().unwrap();
    (answers.peer, answers.large) = (Some(Answer::Silent), Some((1500, Answer::Silent)));
    assert_eq!(walk(&filtered).broken, None, "a host that does not answer at all proves nothing");
}

#[test]
fn a_peer_on_the_link_is_routed_to_directly_if_the_network_says_so() {
    let mut facts = facts("vxlan");
    facts.stored.config =
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#.parse().unwrap();
    facts.answers.as_mut().unwrap().tunnel_port = None;
    let wrong = walk(&facts).broken.unwrap();
    assert!(wrong.says.contains("expected through 192.0.2.2 on eth0"), "{wrong:?}");
    facts.host.routes[0] = facts.host.routes[0].via_gateway(ip("192.0.2.2"), ETH0);
    let hop = Hop { link: ETH0, gateway: Some(ip("192.0.2.2")) };
    facts.host.hops.insert(facts.destination, Ok(hop));
    assert_eq!(walk(&facts).broken, None);
    assert_eq!(facts.host.routes[0].via, Via::Gateway(ip("192.0.2.2")));
}

proptest! {
    /// Whatever a lease says and whichever addresses are asked for, a walk ends with words.
    #[test]
    fn no_walk_panics(
        value in "\\PC{0,80}",
        key in "10.244.[0-3].0-2[0-9]|\\PC{0,20}",
        source: [u8; 2],
        kind in proptest::sample::select(vec!["vxlan", "host-gw", "udp"]),
    ) {
        let mut facts = facts(kind);
        facts.source = IpAddr::from([10, 244, source[0] % 4, source[1]]);
        facts.stored.records[1] = record(&key, &value);
        if let Some(broken) = walk(&facts).broken {
            prop_assert!(!broken.says.is_empty() && !broken.remedy.is_empty());
        }
    }
}
