use proptest::prelude::*;

use super::*;
use crate::inspect::{Direction, walk::findings};

fn path() -> PacketPath {
    let [from, to] = ["10.244.7.2", "10.244.8.2"].map(|ip| ip.parse::<IpNetwork>().unwrap());
    let flow = Flow { protocol: 6, source_port: 40_000, destination_port: 15_000 };
    let path = PacketPath::new(Direction::Forwarded, from, to);
    path.carrying(flow).through(Some("cni0".into()), Some("flannel.1".into()))
}

#[test]
fn a_listing_of_iptables_save_is_understood() {
    let told = |filter: &str, nat: &str| {
        let text = format!(
            "*filter\n:FORWARD DROP [0:0]\n:OURS - [0:0]\n{filter}\nCOMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]\n{nat}\nCOMMIT\n"
        );
        let all = findings(&path(), &tables(&Listing::parse(&text), &path()));
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let table = "of table ip filter of legacy iptables";
    let accepts =
        "-A OURS -s 10.244.0.0/16 -m comment --comment \"a b\" -j ACCEPT\n-A FORWARD -j OURS";
    assert_eq!(told(accepts, ""), "");
    for nothing in [
        "-A FORWARD -s 10.9.0.0/16 -j ACCEPT",
        "-A FORWARD ! -s 10.244.0.0/16 -j ACCEPT",
        "-A FORWARD -i docker0 -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A FORWARD -p tcp -m multiport --dports 22,16000:17000 -j ACCEPT",
        "-A FORWARD -p icmp -j ACCEPT",
    ] {
        assert_eq!(
            told(nothing, ""),
            format!("chain FORWARD {table} drops these packets by its policy"),
            "{nothing}"
        );
    }
    let drop = format!("-A FORWARD -i cni+ -j DROP\n{accepts}");
    assert_eq!(told(&drop, ""), format!("chain FORWARD {table} drops these packets by rule 1"));
    let perhaps = format!(
        "-A FORWARD -m limit --limit 5/sec -j REJECT --reject-with icmp-port-unreachable\n{accepts}"
    );
    assert_eq!(
        told(&perhaps, ""),
        format!("chain FORWARD {table} may drop these packets by rule 1")
    );
    let masquerade = "-A POSTROUTING -o flannel.1 -j MASQUERADE --random-fully";
    assert_eq!(
        told(accepts, masquerade),
        "chain POSTROUTING of table ip nat of legacy iptables masquerades these packets by rule 1"
    );
    assert_eq!(told(accepts, "-A POSTROUTING -o eth0 -j MASQUERADE"), "");
}

proptest! {
    #[test]
    fn no_text_panics(text in "(-[a-z]|!|--[a-z]{1,9}|[A-Z]{1,5}|\"|\\\\|[0-9./]{1,12}| ){0,20}") {
        let _ = read(1, &text, &path(), None);
    }
}
