use std::ops::RangeInclusive;

use super::*;

fn link(index: u32, name: &str) -> Link {
    Link { loopback: index == 1, ..crate::state::testing::link(index, name) }
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

fn by(selector: Selector, families: Families) -> Search {
    Search::new(families, vec![selector])
}

fn chosen(
    machine: &Candidates,
    families: Families,
    selector: &Selector,
) -> Result<Interface, Vec<Refusal>> {
    choose(machine, &by(selector.clone(), families))
}

fn taken(families: Families, selector: &Selector) -> (String, Option<String>, Option<String>) {
    let it = chosen(&machine(), families, selector).unwrap();
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
    assert_eq!(chosen(&machine, Families::V4, &Selector::DefaultRoute).unwrap().name, "eth0");
}

#[test]
fn a_blackhole_default_route_leads_nowhere() {
    let mut machine = machine();
    machine.default_routes = vec![default_route(IpFamily::V4, 3).blackhole()];
    assert!(chosen(&machine, Families::V4, &Selector::DefaultRoute).is_err());
}

#[test]
fn by_name() {
    assert_eq!(
        taken(Families::V4, &Selector::Name("eth2".to_owned())),
        shown("eth2", "10.9.0.4", "")
    );
    assert_eq!(
        taken(Families::Dual, &Selector::Name("eth2".to_owned())),
        shown("eth2", "10.9.0.4", "")
    );
}

#[test]
fn by_address_takes_that_address() {
    assert_eq!(taken(Families::V4, &by_address("192.0.2.9", "")), shown("eth0", "192.0.2.9", ""));
    assert_eq!(
        taken(Families::Dual, &by_address("192.0.2.9", "fe80::1")),
        shown("eth0", "192.0.2.9", "2001:db8::1")
    );
    assert_eq!(
        taken(Families::Dual, &by_address("", "2001:db8::1")),
        shown("eth0", "192.0.2.1", "2001:db8::1")
    );
    assert!(chosen(&machine(), Families::Dual, &by_address("192.0.2.9", "2001:db8::9")).is_err());
}

#[test]
fn a_preferred_address_is_taken_where_there_is_a_choice() {
    let preferred = vec!["192.0.2.9".parse().unwrap(), "203.0.113.1".parse().unwrap()];
    let choose = |families, selector: &Selector| {
        let preferred = preferred.clone();
        choose(&machine(), &Search { preferred, ..by(selector.clone(), families) }).unwrap()
    };
    let taken = |selector| choose(Families::Dual, selector);
    let eth0 = Selector::Name("eth0".to_owned());
    let first = Selector::pattern(r"^192\.0|^2001").unwrap();
    for selector in [&eth0, &Selector::DefaultRoute, &first] {
        let it = taken(selector);
        assert_eq!(it.v4, Some([192, 0, 2, 9].into()), "{selector}");
        assert_eq!(it.v6, "2001:db8::1".parse().ok(), "{selector}");
    }
    // Who names another one means it, and it does not lead to another interface.
    assert_eq!(taken(&by_address("192.0.2.1", "")).v4, Some([192, 0, 2, 1].into()));
    let it = choose(Families::V4, &Selector::DefaultRoute);
    assert_eq!((it.name.as_str(), it.v4), ("eth1", Some([198, 51, 100, 1].into())));
}

#[test]
fn by_pattern_an_address_goes_before_a_name() {
    let mut machine = machine();
    machine.links.push(link(5, "net10.9"));
    machine.addresses.push(address(5, "203.0.113.5/24"));
    let pattern = Selector::pattern("10\\.9").unwrap();
    let it = chosen(&machine, Families::V4, &pattern).unwrap();
    assert_eq!((it.name.as_str(), it.v4), ("eth2", Some([10, 9, 0, 4].into())));
    let name_only = Selector::pattern("^net").unwrap();
    assert_eq!(chosen(&machine, Families::V4, &name_only).unwrap().name, "net10.9");
}

#[test]
fn by_pattern_both_families_must_match_on_one_interface() {
    let both = Selector::pattern("192\\.0\\.2\\.9|2001:db8").unwrap();
    assert_eq!(taken(Families::Dual, &both), shown("eth0", "192.0.2.9", "2001:db8::1"));
    // No interface has both, so the one family has to do.
    let one = Selector::pattern("198\\.51").unwrap();
    assert_eq!(taken(Families::Dual, &one), shown("eth1", "198.51.100.1", ""));
    assert!(Selector::pattern("eth[").unwrap_err().to_string().contains("eth["));
}

#[test]
fn by_what_it_can_reach() {
    let mut machine = machine();
    let target: IpAddr = "203.0.113.1".parse().unwrap();
    let reach = Reach { link: 2, gateway: None, source: Some("192.0.2.9".parse().unwrap()) };
    machine.reach = vec![(target, Ok(reach))];
    let it = chosen(&machine, Families::V4, &Selector::CanReach(target)).unwrap();
    assert_eq!((it.name.as_str(), it.v4), ("eth0", Some([192, 0, 2, 9].into())));
    machine.reach = vec![(target, Err(KernelError::new(101)))];
    let refusal = chosen(&machine, Families::V4, &Selector::CanReach(target)).unwrap_err();
    assert_eq!(
        refusal[0].to_string(),
        "way to 203.0.113.1 (Network is unreachable (os error 101))"
    );
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
    while let Ok(it) = chosen(&machine, Families::V4, &Selector::Name("eth0".to_owned())) {
        order.push(it.v4.unwrap().to_string());
        machine.addresses.retain(|address| Some(address.address.ip()) != it.v4.map(IpAddr::V4));
    }
    assert_eq!(order, ["192.0.2.4", "192.0.2.5", "192.0.2.3", "192.0.2.2", "192.0.2.1"]);
}

#[test]
fn a_link_local_address_is_taken_by_explicit_choice_only() {
    let machine = Candidates {
        addresses: vec![address(2, "169.254.0.1/16"), address(2, "fe80::1/64")],
        reach: vec![(
            "169.254.0.9".parse().unwrap(),
            Ok(Reach { link: 2, gateway: None, source: "169.254.0.1".parse().ok() }),
        )],
        ..machine()
    };
    let taken = |selector: &Selector| chosen(&machine, Families::Dual, selector).ok()?.v4;
    assert_eq!(taken(&Selector::Name("eth0".to_owned())), None);
    assert_eq!(taken(&Selector::DefaultRoute), None);
    for explicit in [
        by_address("169.254.0.1", ""),
        Selector::pattern("^169").unwrap(),
        Selector::CanReach("169.254.0.9".parse().unwrap()),
    ] {
        assert_eq!(taken(&explicit), Some([169, 254, 0, 1].into()), "{explicit}");
    }
    let name = Search {
        preferred: vec!["169.254.0.1".parse().unwrap(), "fe80::1".parse().unwrap()],
        ..by(Selector::Name("eth0".to_owned()), Families::Dual)
    };
    let it = choose(&machine, &name).unwrap();
    assert_eq!((it.v4, it.v6), (Some([169, 254, 0, 1].into()), None));
}

#[test]
fn a_family_without_an_address_is_named_and_the_other_serves() {
    let mut machine = machine();
    machine.addresses.retain(|it| it.address.ip() != "2001:db8::1".parse::<IpAddr>().unwrap());
    for selector in [Selector::DefaultRoute, Selector::Name("eth0".to_owned())] {
        let it = chosen(&machine, Families::Dual, &selector).unwrap();
        assert_eq!((it.v4, it.v6), (Some([192, 0, 2, 1].into()), None), "{selector}");
        assert_eq!(it.faults, [InterfaceFault::NoAddress(IpFamily::V6)]);
    }
    // It comes later.
    let mut search = by(Selector::DefaultRoute, Families::Dual);
    search.current = choose(&machine, &search).ok();
    machine.addresses.push(Address { tentative: true, ..address(2, "2001:db8::2/64") });
    assert_eq!(choose(&machine, &search).unwrap().v6, None);
    machine.addresses.last_mut().unwrap().tentative = false;
    let it = choose(&machine, &search).unwrap();
    assert_eq!((it.v6, it.faults), ("2001:db8::2".parse().ok(), vec![]));
}

#[test]
fn what_was_chosen_last_stays_until_there_is_something_usable() {
    let mut search = by(Selector::DefaultRoute, Families::V4);
    let first = choose(&machine(), &search).unwrap();
    search.current = Some(first.clone());
    let faults = |machine: &Candidates| {
        let it = choose(machine, &search).unwrap();
        assert_eq!(Interface { faults: vec![], ..it.clone() }, first);
        it.faults
    };
    assert_eq!(faults(&machine()), []);
    let mut now = machine();
    now.links[2].running = false;
    assert_eq!(faults(&now), [InterfaceFault::NoCarrier]);
    // Set down, its routes are gone, and another one would do; without one it stays.
    now.links[2].up = false;
    assert_eq!(choose(&now, &search).unwrap().name, "eth1");
    now.default_routes.clear();
    assert_eq!(faults(&now), [InterfaceFault::Down]);
    now.addresses.retain(|it| it.link != 3);
    assert_eq!(faults(&now), [InterfaceFault::Down, InterfaceFault::NoAddress(IpFamily::V4)]);
    now.links.remove(2);
    assert_eq!(faults(&now), [InterfaceFault::Missing]);
    now.default_routes = vec![default_route(IpFamily::V4, 2)];
    assert_eq!(choose(&now, &search).unwrap().name, "eth0");
}

#[test]
fn a_published_address_is_taken_again_after_a_restart() {
    for (selector, published) in [
        (Selector::DefaultRoute, "192.0.2.9"),
        (Selector::Name("eth0".to_owned()), "192.0.2.9"),
        (Selector::pattern("^192").unwrap(), "192.0.2.9"),
    ] {
        let mut search = by(selector, Families::V4);
        search.published = vec![published.parse().unwrap()];
        let mut machine = machine();
        for state in [
            Address::new(2, "192.0.2.9/24".parse().unwrap()),
            Address { deprecated: true, ..address(2, "192.0.2.9/24") },
            Address { tentative: true, ..address(2, "192.0.2.9/24") },
        ] {
            machine.addresses[3] = state;
            let it = choose(&machine, &search).unwrap();
            assert_eq!(it.v4, published.parse().ok(), "{state:?}");
        }
        machine.addresses[3].duplicate = true;
        assert_ne!(choose(&machine, &search).unwrap().v4, published.parse().ok());
    }
}

#[test]
fn an_address_that_moves_between_machines_goes_behind_a_leased_one_with_a_network() {
    let leased = |text| Address { permanent: false, ..address(2, text) };
    let first = |addresses: Vec<Address>| {
        let machine = Candidates { addresses, ..machine() };
        chosen(&machine, Families::V4, &Selector::Name("eth0".to_owned())).unwrap().v4.unwrap()
    };
    let vip = || address(2, "192.0.2.100/32");
    for addresses in [vec![vip(), leased("192.0.2.1/24")], vec![leased("192.0.2.1/24"), vip()]] {
        assert_eq!(first(addresses), Ipv4Addr::new(192, 0, 2, 1));
    }
    // keepalived's for IPv6.
    let v6 = [address(2, "2001:db8::100/128"), address(2, "2001:db8::1/64")];
    let machine = Candidates { addresses: v6.to_vec(), ..machine() };
    let it = chosen(&machine, Families::V6, &Selector::Name("eth0".to_owned())).unwrap();
    assert_eq!(it.v6, "2001:db8::1".parse().ok());
    // Some clouds give nothing but single addresses, and some machines have one beside a private network.
    assert_eq!(first(vec![leased("192.0.2.1/32"), vip()]), Ipv4Addr::new(192, 0, 2, 100));
    assert_eq!(first(vec![vip(), address(2, "10.0.0.1/24")]), Ipv4Addr::new(192, 0, 2, 100));
    // Somebody else has the first.
    let tentative = Address { tentative: true, ..address(2, "192.0.2.1/24") };
    assert_eq!(first(vec![tentative, leased("192.0.2.2/24")]), Ipv4Addr::new(192, 0, 2, 2));
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
    machine
}

#[test]
fn a_device_of_pods_is_not_taken_by_mistake() {
    let mut machine = machine_with_pods();
    let mut pods =
        vec![range("10.244.0.0", "10.244.255.255"), range("fd00:10:244::", "fd00:10:244:ffff::")];
    let taken = |pods: &[_], families, selector: &Selector| {
        let search = Search { pods: pods.to_vec(), ..by(selector.clone(), families) };
        let it = choose(&machine, &search).unwrap();
        (it.name, it.is_doubtful)
    };
    let pattern = Selector::pattern(r"^10\.244|^10\.9\.1|^fd00|^2001:db8:7").unwrap();
    let sure = |name: &str| (name.to_owned(), false);
    assert_eq!(taken(&pods, Families::V4, &Selector::DefaultRoute), sure("eth1"));
    for families in [Families::V4, Families::V6] {
        assert_eq!(taken(&pods, families, &pattern), sure("eth3"));
    }
    // Who names it means it.
    for selector in [Selector::Name("cni0".to_owned()), by_address("10.244.1.1", "")] {
        assert_eq!(taken(&pods, Families::V4, &selector), sure("cni0"));
    }
    // Machines may have their own addresses inside of the network. That is asking for trouble, and has worked so far.
    pods = vec![range("0.0.0.0", "255.255.255.255")];
    let doubtful = ("flannel.1".to_owned(), true);
    assert_eq!(taken(&pods, Families::V4, &Selector::DefaultRoute), doubtful);
    assert_eq!(taken(&pods, Families::V4, &pattern), doubtful);

    // It does not follow an interface that is gone, and makes way for one that comes.
    pods = vec![range("10.244.0.0", "10.244.255.255")];
    let mut search = Search { pods, ..by(Selector::DefaultRoute, Families::V4) };
    search.current = choose(&machine, &search).ok();
    let routes =
        std::mem::replace(&mut machine.default_routes, vec![default_route(IpFamily::V4, 5)]);
    let links = machine.links.clone();
    machine.links.retain(|link| link.name != "eth1");
    let it = choose(&machine, &search).unwrap();
    assert_eq!((it.name.as_str(), it.faults), ("eth1", vec![InterfaceFault::Missing]));
    search.current = None;
    search.current = choose(&machine, &search).ok();
    assert!(search.current.as_ref().unwrap().is_doubtful);
    (machine.default_routes, machine.links) = (routes, links);
    assert_eq!(choose(&machine, &search).unwrap().name, "eth1");
}

#[test]
fn a_refusal_lists_what_was_there_and_why_not() {
    let mut machine = machine();
    machine.links[2].mtu = 0;
    let refusal = chosen(&machine, Families::V6, &Selector::Name("eth1".to_owned())).unwrap_err();
    assert_eq!(
        refusal[0].to_string(),
        "name \"eth1\": lo [127.0.0.1/8 ::1/128] has another name, \
         eth0 [192.0.2.1/24 192.0.2.9/24 fe80::1/64 2001:db8::1/64] has another name, \
         eth1 [198.51.100.1/24] has MTU 0, \
         eth2 [169.254.3.3/16 10.9.0.4/24 fe80::4/64] has another name"
    );
    machine.links[2].mtu = 1500;
    let refusal = chosen(&machine, Families::V6, &Selector::Name("eth1".to_owned())).unwrap_err();
    assert_eq!(refusal[0].interfaces[2].reason, "has no usable IPv6 address");
}
