//! The differences that are known, with the name under which `docs/cni.md` gives the reason.

use crate::observed::Difference;

/// A difference: where it may be seen, and as what.
#[derive(Debug)]
pub(crate) struct Explained {
    id: &'static str,
    group: &'static str,
    /// Patterns, in which `*` is any text, also none, and `|` is between several.
    case: &'static str,
    step: &'static str,
    path: &'static str,
    theirs: &'static str,
    ours: &'static str,
}

impl Explained {
    /// Whether it is for any cases, of which some may have none that it explains.
    pub(crate) fn is_of_all_groups(&self) -> bool {
        self.group == "*"
    }
}

pub(crate) fn of_group(group: &str) -> impl Iterator<Item = &'static Explained> {
    EXPLAINED.iter().filter(move |it| fits(it.group, group))
}

pub(crate) fn find(
    group: &str,
    case: &str,
    step: &str,
    difference: &Difference,
) -> Option<&'static Explained> {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
    let (theirs, ours) = (value(&difference.theirs), value(&difference.ours));
    of_group(group).find(|it| {
        fits(it.case, case)
            && fits(it.step, step)
            && fits(it.path, &difference.path)
            && fits(it.theirs, &theirs)
            && fits(it.ours, &ours)
    })
}

/// Whether `text` is what one of the patterns says, which are separated by `|`.
fn fits(patterns: &str, text: &str) -> bool {
    patterns.split('|').any(|pattern| fits_one(pattern, text))
}

fn fits_one(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| fits_one(rest, &text[at..]))
}

const EXPLAINED: &[Explained] = &[
    Explained {
        id: "error-codes",
        group: "*",
        case: "*",
        step: "*",
        path: "answer/code",
        theirs: "999|100",
        ours: "1|100|101|102|103|11|2|4|5|7",
    },
    Explained {
        id: "loopback-versions",
        group: "loopback",
        case: "0.1.0|0.2.0|0.3.*|0.4.0",
        step: "*ADD*",
        path: "answer/*",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "invalid-route",
        group: "host-local",
        case: "route without destination",
        step: "*",
        path: "*",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "last-reserved",
        group: "host-local",
        case: "last has a line end",
        step: "*",
        path: "answer/ips*|files/net1/10.1.2.*|files/net1/last_reserved_ip.0/content",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "nodad",
        group: "bridge*|flannel",
        case: "*",
        step: "*",
        path: "*/addr/fd*/nodad|*/addr/fd*/tentative",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "bridge-mac",
        group: "bridge keys|bridge spoof check|bridge vlan",
        case: "*",
        step: "*",
        path: "host/link/cni0/address|answer/interfaces/0/mac",
        theirs: "*MAC-of-*",
        ours: "*MAC-of-*",
    },
    Explained {
        id: "queue-length",
        group: "bridge*|flannel",
        case: "*",
        step: "*",
        path: "host/link/VETH*/txqlen",
        theirs: "nothing|1000",
        ours: "nothing|1000",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "bridge with another*|ipam out of range|ips|mac garbage|route scope|route unreachable|small mtu|unknown ipam",
        step: "*",
        path: "c*/link/eth0/*|c*/route/*|host/link/*|host/route/*",
        theirs: "*",
        ours: "nothing",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "bridge with another*|ipam out of range|ips|mac garbage|route scope|route unreachable|small mtu|unknown ipam",
        step: "*",
        path: "c*/sysctl/*/eth0/*|host/sysctl/*/cni0/*",
        theirs: "*",
        ours: "",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "bridge with another*",
        step: "*",
        path: "host/link/cni0/address",
        theirs: "*MAC-of-*",
        ours: "\"00:00:00:00:00:00\"",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "bridge with another IPv6 address",
        step: "*",
        path: "host/sysctl/ipv4/ip_forward",
        theirs: "1",
        ours: "0",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "small mtu",
        step: "*",
        path: "host/link/cni0/mtu|host/sysctl/ipv6/conf/cni0/*",
        theirs: "1000|",
        ours: "1500|0|1",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "interface is there*|not a bridge*|tiny mtu",
        step: "*",
        path: "files/net1/last_reserved_ip.*|files/net1/lock/*|files/net1/mode",
        theirs: "nothing|10.1.2.2|fd00:1::2",
        ours: "100600|10.1.2.*|fd00:1::*||100750|40755",
    },
    Explained {
        id: "failed-add",
        group: "bridge keys",
        case: "interface is there*",
        step: "3 ADD c2|4 DEL c1",
        path: "answer/ips/*/address|c2/link/eth0/addr/*|c2/route/*|files/net1/10.1.2.*|files/net1/fd00:1::*",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "delete-refused",
        group: "bridge keys",
        case: "ipam out of range|type of a key",
        step: "*DEL c1",
        path: "answer/*|files/net1/lock/*|files/net1/mode|ok",
        theirs: "999|true|false|nothing",
        ours: "nothing|true||100750|40755",
    },
    Explained {
        id: "check-promiscuous",
        group: "bridge keys",
        case: "bridge promiscuous",
        step: "*CHECK*",
        path: "answer*|ok",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "delete-refused",
        group: "host-local",
        case: "/31|/32|args garbage|empty range|families mixed|gateway outside|host bits|no ipam|no range|no subnet|ranges overlap|start *",
        step: "* DEL *",
        path: "answer*|files/net1/lock*|files/net1/mode|ok",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "config-refused",
        group: "bridge keys",
        case: "hairpin and promiscuous|no interface|bad vlan|mac garbage",
        step: "*",
        path: "files/*|answer*|ok",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "route-metrics",
        group: "bridge keys",
        case: "routes|route metrics",
        step: "*",
        path: "c*/route/*/metrics/0/*",
        theirs: "nothing",
        ours: "1*",
    },
    Explained {
        id: "route-prefix",
        group: "bridge keys",
        case: "route with host bits",
        step: "*",
        path: "*",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "delete-refused",
        group: "portmap keys",
        case: "bad bit*|bit and chain*|condition*|container port 0*|port 0*|unknown|wrong condition*",
        step: "*DEL*",
        path: "answer*|ok",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "failed-add",
        group: "portmap keys",
        case: "wrong condition of nft, nftables",
        step: "*",
        path: "rules/table ip cni_hostport/*comment*|host/sysctl/ipv4/conf/cni0/route_localnet",
        theirs: "1",
        ours: "nothing|0",
    },
    Explained {
        id: "failed-add",
        group: "portmap keys",
        case: "wrong condition of nft, nftables",
        step: "*",
        path: "rules/table ip6 cni_hostport/*",
        theirs: "nothing",
        ours: "1",
    },
    Explained {
        id: "failed-add",
        group: "flannel",
        case: "unknown ipam",
        step: "*",
        path: "answer*|ok|host/link/cni0/address",
        theirs: "*",
        ours: "*",
    },
    Explained {
        id: "failed-add",
        group: "flannel",
        case: "unknown ipam",
        step: "*",
        path: "*",
        theirs: "*",
        ours: "nothing|",
    },
    Explained {
        id: "every-interface",
        group: "flannel",
        case: "no file",
        step: "*DEL*",
        path: "files/net1/*",
        theirs: "nothing",
        ours: "|100750|40755",
    },
    Explained {
        id: "masquerade-gone",
        group: "bridge masquerade|bridge spoof check",
        case: "*",
        step: "11 DEL c1|12 DEL c1",
        path: "rules/*",
        theirs: "*",
        ours: "nothing",
    },
    Explained {
        id: "check-routes",
        group: "bridge keys",
        case: "route table",
        step: "*CHECK*",
        path: "answer*|ok",
        theirs: "*",
        ours: "*",
    },
];

#[test]
fn patterns_fit_what_they_say() {
    for (pattern, text, expected) in [
        ("", "", true),
        ("*", "", true),
        ("a*c", "abc", true),
        ("a*c", "ab", false),
        ("*b*", "abc", true),
        ("*b*d", "abc", false),
        ("abc", "abcd", false),
        ("a|b*", "bc", true),
        ("a|b*", "ab", false),
    ] {
        assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
    }
}

#[test]
fn every_difference_has_its_reason_in_the_documentation() {
    let documentation = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cni.md");
    let documentation = std::fs::read_to_string(documentation).unwrap();
    for Explained { id, .. } in EXPLAINED {
        assert!(documentation.contains(&format!("`{id}`")), "docs/cni.md has no {id}");
    }
}
