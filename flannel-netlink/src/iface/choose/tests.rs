use super::*;
use crate::state::LinkKind;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: LinkKind::Other(String::new()),
        mac: None,
        mtu: 1500,
        queue: 0,
        up: true,
        running: true,
        loopback: index == 1,
        controller: None,
        parent: None,
        link_local: true,
    }
}

fn address(link: u32, text: &str) -> Address {
    Address::new(link, text.parse().unwrap())
}

fn default_route(family: IpFamily, link: u32) -> Route {
    let (to, via) = match family {
        IpFamily::V4 => ("0.0.0.0/0", "192.0.2.254"),
        IpFamily::V6 => ("::/0", "2001:db8::fe"),
    };
    Route::new(to.parse().unwrap(), 3).via_gateway(via.parse().unwrap(), link)
}

/// lo, eth0 (dual), eth1 (IPv4 only), eth2 (dual, IPv6 link-local only).
fn machine() -> Candidates {
    Candidates {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1"), link(4, "eth2")],
        addresses: vec![
            address(1, "127.0.0.1/8"),
            address(1, "::1/128"),
            address(2, "192.0.2.1/24"),
            address(2, "192.0.2.9/24"),
            address(2, "fe80::1/64"),
            address(2, "2001:db8::1/64"),
            address(3, "198.51.100.1/24"),
            address(4, "169.254.3.3/16"),
            address(4, "10.9.0.4/24"),
            address(4, "fe80::4/64"),
        ],
        default_routes: vec![
            default_route(IpFamily::V4, 3),
            default_route(IpFamily::V4, 2),
            default_route(IpFamily::V6, 2),
        ],
        ..Candidates::default()
    }
}

fn taken(families: Families, selector: &Selector) -> (String, Option<String>, Option<String>) {
    let it = choose(&machine(), families, selector).unwrap();
    (it.name, it.v4.map(|it| it.to_string()), it.v6.map(|it| it.to_string()))
}

fn shown(name: &str, v4: &str, v6: &str) -> (String, Option<String>, Option<String>) {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    (name.to_owned(), some(v4), some(v6))
}

fn by_address(v4: &str, v6: &str) -> Selector {
    Selector::Address { v4: v4.parse().ok(), v6: v6.parse().ok() }
}

#[test]
fn by_default_route() {
    let default = &Selector::DefaultRoute;
    assert_eq!(taken(Families::V4, default), shown("eth1", "198.51.100.1", ""));
    assert_eq!(taken(Families::V6, default), shown("eth0", "", "2001:db8::1"));
    assert_eq!(taken(Families::Dual, default), shown("eth0", "192.0.2.1", "2001:db8::1"));
}

#[test]
fn by_a_default_route_through_a_nexthop_object() {
    let mut machine = machine();
    machine.default_routes = vec![Route::new("0.0.0.0/0".parse().unwrap(), 3).via_nexthop(5)];
    machine.nexthops = vec![Nexthop::new(5, 2, "192.0.2.254".parse().unwrap(), 3)];
    assert_eq!(choose(&machine, Families::V4, &Selector::DefaultRoute).unwrap().name, "eth0");
}

#[test]
fn a_blackhole_default_route_leads_nowhere() {
    let mut machine = machine();
    machine.default_routes = vec![default_route(IpFamily::V4, 3).blackhole()];
    assert!(choose(&machine, Families::V4, &Selector::DefaultRoute).is_err());
}

#[test]
fn by_name() {
    assert_eq!(
        taken(Families::V4, &Selector::Name("eth2".to_owned())),
        shown("eth2", "10.9.0.4", "")
    );
    assert_eq!(
        taken(Families::Dual, &Selector::Name("eth2".to_owned())),
        shown("eth2", "10.9.0.4", "fe80::4")
    );
}

#[test]
fn by_address_takes_that_address() {
    assert_eq!(taken(Families::V4, &by_address("192.0.2.9", "")), shown("eth0", "192.0.2.9", ""));
    assert_eq!(
        taken(Families::Dual, &by_address("192.0.2.9", "fe80::1")),
        shown("eth0", "192.0.2.9", "fe80::1")
    );
    assert_eq!(
        taken(Families::Dual, &by_address("", "2001:db8::1")),
        shown("eth0", "192.0.2.1", "2001:db8::1")
    );
    assert!(choose(&machine(), Families::Dual, &by_address("192.0.2.9", "fe80::4")).is_err());
}

#[test]
fn a_preferred_address_is_taken_where_there_is_a_choice() {
    let mut machine = machine();
    machine.preferred = vec!["192.0.2.9".parse().unwrap(), "203.0.113.1".parse().unwrap()];
    let taken = |selector: &Selector| choose(&machine, Families::Dual, selector).unwrap();
    let eth0 = Selector::Name("eth0".to_owned());
    let first = Selector::pattern(r"^192\.0|^2001").unwrap();
    for selector in [&eth0, &Selector::DefaultRoute, &first] {
        let it = taken(selector);
        assert_eq!(it.v4, Some([192, 0, 2, 9].into()), "{selector}");
        assert_eq!(it.v6, "2001:db8::1".parse().ok(), "{selector}");
    }
    // Who names another one means it, and it does not lead to another interface.
    assert_eq!(taken(&by_address("192.0.2.1", "")).v4, Some([192, 0, 2, 1].into()));
    let it = choose(&machine, Families::V4, &Selector::DefaultRoute).unwrap();
    assert_eq!((it.name.as_str(), it.v4), ("eth1", Some([198, 51, 100, 1].into())));
}

#[test]
fn by_pattern_an_address_goes_before_a_name() {
    let mut machine = machine();
    machine.links.push(link(5, "net10.9"));
    machine.addresses.push(address(5, "203.0.113.5/24"));
    let pattern = Selector::pattern("10\\.9").unwrap();
    let it = choose(&machine, Families::V4, &pattern).unwrap();
    assert_eq!((it.name.as_str(), it.v4), ("eth2", Some([10, 9, 0, 4].into())));
    let name_only = Selector::pattern("^net").unwrap();
    assert_eq!(choose(&machine, Families::V4, &name_only).unwrap().name, "net10.9");
}

#[test]
fn by_pattern_both_families_must_match_on_one_interface() {
    let both = Selector::pattern("192\\.0\\.2\\.9|2001:db8").unwrap();
    assert_eq!(taken(Families::Dual, &both), shown("eth0", "192.0.2.9", "2001:db8::1"));
    let one = Selector::pattern("198\\.51").unwrap();
    assert!(choose(&machine(), Families::Dual, &one).is_err());
    assert!(Selector::pattern("eth[").unwrap_err().to_string().contains("eth["));
}

#[test]
fn by_what_it_can_reach() {
    let mut machine = machine();
    let target: IpAddr = "203.0.113.1".parse().unwrap();
    let reach = Reach { link: 2, gateway: None, source: Some("192.0.2.9".parse().unwrap()) };
    machine.reach = vec![(target, Ok(reach))];
    let it = choose(&machine, Families::V4, &Selector::CanReach(target)).unwrap();
    assert_eq!((it.name.as_str(), it.v4), ("eth0", Some([192, 0, 2, 9].into())));
    machine.reach = vec![(target, Err(KernelError::new(101)))];
    let refusal = choose(&machine, Families::V4, &Selector::CanReach(target)).unwrap_err();
    assert_eq!(refusal.to_string(), "way to 203.0.113.1 (Network is unreachable (os error 101))");
}

#[test]
fn the_best_address_comes_first() {
    let mut machine = machine();
    machine.addresses = vec![
        Address { deprecated: true, ..address(2, "192.0.2.1/24") },
        address(2, "169.254.0.1/16"),
        Address { permanent: false, ..address(2, "192.0.2.2/24") },
        Address { temporary: true, ..address(2, "192.0.2.3/24") },
        address(2, "192.0.2.4/24"),
        address(2, "192.0.2.5/24"),
    ];
    let mut order = Vec::new();
    while let Ok(it) = choose(&machine, Families::V4, &Selector::Name("eth0".to_owned())) {
        order.push(it.v4.unwrap().to_string());
        machine.addresses.retain(|address| Some(address.address.ip()) != it.v4.map(IpAddr::V4));
    }
    assert_eq!(order, ["192.0.2.4", "192.0.2.5", "192.0.2.3", "192.0.2.2", "169.254.0.1"]);
}

#[test]
fn an_address_that_moves_between_machines_goes_behind_a_leased_one_with_a_network() {
    let leased = |text| Address { permanent: false, ..address(2, text) };
    let chosen = |addresses: Vec<Address>| {
        let machine = Candidates { addresses, ..machine() };
        choose(&machine, Families::V4, &Selector::Name("eth0".to_owned())).unwrap().v4.unwrap()
    };
    let vip = || address(2, "192.0.2.100/32");
    for addresses in [vec![vip(), leased("192.0.2.1/24")], vec![leased("192.0.2.1/24"), vip()]] {
        assert_eq!(chosen(addresses), Ipv4Addr::new(192, 0, 2, 1));
    }
    // Some clouds give nothing but single addresses, and some machines have one beside a private network.
    assert_eq!(chosen(vec![leased("192.0.2.1/32"), vip()]), Ipv4Addr::new(192, 0, 2, 100));
    assert_eq!(chosen(vec![vip(), address(2, "10.0.0.1/24")]), Ipv4Addr::new(192, 0, 2, 100));
    // Somebody else has the first.
    let tentative = Address { tentative: true, ..address(2, "192.0.2.1/24") };
    assert_eq!(chosen(vec![tentative, leased("192.0.2.2/24")]), Ipv4Addr::new(192, 0, 2, 2));
}

fn range(first: &str, last: &str) -> RangeInclusive<IpAddr> {
    first.parse().unwrap()..=last.parse().unwrap()
}

/// What a running node adds to a machine: its device, the bridge of its pods, and a default route from somebody who takes the
/// device for a network card. `eth3` came later.
fn machine_with_pods() -> Candidates {
    let mut machine = machine();
    machine.links.extend([link(5, "flannel.1"), link(6, "cni0"), link(7, "eth3")]);
    machine.addresses.extend([
        address(5, "10.244.1.0/32"),
        address(6, "10.244.1.1/24"),
        address(6, "fd00:10:244:1::1/64"),
        address(7, "10.9.1.7/24"),
        address(7, "2001:db8:7::7/64"),
    ]);
    machine.default_routes.splice(0..0, [default_route(IpFamily::V4, 5)]);
    machine.pods =
        vec![range("10.244.0.0", "10.244.255.255"), range("fd00:10:244::", "fd00:10:244:ffff::")];
    machine
}

#[test]
fn a_device_of_pods_is_not_taken_by_mistake() {
    let mut machine = machine_with_pods();
    let taken = |machine: &Candidates, families, selector: &Selector| {
        choose(machine, families, selector).map(|it| it.name)
    };
    let pattern = Selector::pattern(r"^10\.244|^10\.9\.1|^fd00|^2001:db8:7").unwrap();
    assert_eq!(taken(&machine, Families::V4, &Selector::DefaultRoute).unwrap(), "eth1");
    for families in [Families::V4, Families::V6] {
        assert_eq!(taken(&machine, families, &pattern).unwrap(), "eth3");
    }
    // Who names it means it.
    for selector in [Selector::Name("cni0".to_owned()), by_address("10.244.1.1", "")] {
        assert_eq!(taken(&machine, Families::V4, &selector).unwrap(), "cni0");
    }
    let doubtful = |machine: &Candidates, selector: &Selector| {
        choose(machine, Families::V4, selector).unwrap().is_doubtful
    };
    assert!(!doubtful(&machine, &Selector::DefaultRoute) && !doubtful(&machine, &pattern));
    assert!(!doubtful(&machine, &Selector::Name("cni0".to_owned())));
    // Machines may have their own addresses inside of the network. That is asking for trouble, and has worked so far.
    machine.pods = vec![range("0.0.0.0", "255.255.255.255")];
    assert!(doubtful(&machine, &Selector::DefaultRoute) && doubtful(&machine, &pattern));
    assert_eq!(taken(&machine, Families::V4, &Selector::DefaultRoute).unwrap(), "flannel.1");
    assert_eq!(taken(&machine, Families::V4, &pattern).unwrap(), "flannel.1");
}

#[test]
fn a_refusal_lists_what_was_there_and_why_not() {
    let mut machine = machine();
    machine.links[2].mtu = 0;
    let refusal = choose(&machine, Families::V6, &Selector::Name("eth1".to_owned())).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "name \"eth1\": lo [127.0.0.1/8 ::1/128] has another name, \
         eth0 [192.0.2.1/24 192.0.2.9/24 fe80::1/64 2001:db8::1/64] has another name, \
         eth1 [198.51.100.1/24] has MTU 0, \
         eth2 [169.254.3.3/16 10.9.0.4/24 fe80::4/64] has another name"
    );
    machine.links[2].mtu = 1500;
    let refusal = choose(&machine, Families::V6, &Selector::Name("eth1".to_owned())).unwrap_err();
    assert_eq!(refusal.interfaces[2].reason, "has no usable IPv6 address");
}
