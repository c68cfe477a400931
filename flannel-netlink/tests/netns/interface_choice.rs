use std::time::Duration;

use flannel_netlink::{
    LinkChange, LinkSpec, LinkSpecKind, alter_link, delete_link, ensure_link,
    iface::{
        Families, InterfaceChanges, InterfaceFault, Search, SelectError, Selector, lookup_route,
        select_interface,
    },
    state::{Address, IpFamily, Route},
};
use tokio::time::timeout;

use crate::support::Host;

fn search(families: Families, selectors: Vec<Selector>) -> Search {
    let mut search = Search::new(families, selectors);
    search.pods = vec!["10.244.0.0".parse().unwrap()..="10.244.255.255".parse().unwrap()];
    search
}

async fn select(
    host: &mut Host,
    families: Families,
    selector: Selector,
) -> Result<(String, String, String), SelectError> {
    let it = select_interface(&mut host.connection, &search(families, vec![selector])).await?;
    let text = |address: Option<String>| address.unwrap_or_default();
    Ok((it.name, text(it.v4.map(|it| it.to_string())), text(it.v6.map(|it| it.to_string()))))
}

fn found(name: &str, v4: &str, v6: &str) -> (String, String, String) {
    (name.to_owned(), v4.to_owned(), v6.to_owned())
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn every_selector_finds_the_interface() {
    let mut host = Host::new().await;
    let eth0 = host.eth0.index;
    for (to, via) in [("0.0.0.0/0", "192.0.2.254"), ("::/0", "2001:db8::fe")] {
        host.put(Route::new(to.parse().unwrap(), 3).via_gateway(via.parse().unwrap(), eth0)).await;
    }
    let both = found("eth0", "192.0.2.1", "2001:db8::1");
    for selector in [
        Selector::DefaultRoute,
        Selector::Name("eth0".to_owned()),
        Selector::Address { v4: "192.0.2.1".parse().ok(), v6: None },
        Selector::Address { v4: None, v6: "2001:db8::1".parse().ok() },
        Selector::pattern("^eth").unwrap(),
        Selector::CanReach("198.51.100.1".parse().unwrap()),
        Selector::CanReach("2001:db8:1::1".parse().unwrap()),
    ] {
        let shown = selector.to_string();
        assert_eq!(
            select(&mut host, Families::Dual, selector.clone()).await.unwrap(),
            both,
            "{shown}"
        );
        let v4 = select(&mut host, Families::V4, selector).await.unwrap();
        assert_eq!(v4, found("eth0", "192.0.2.1", ""), "{shown}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_error_says_what_was_there() {
    let mut host = Host::new().await;
    let selectors = vec![
        Selector::Name("eth7".to_owned()),
        Selector::CanReach("198.51.100.1".parse().unwrap()),
    ];
    let search = search(Families::V4, selectors);
    let error = select_interface(&mut host.connection, &search).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("eth0 [192.0.2.1/24 2001:db8::1/64"), "{text}");
    assert!(text.contains("way to 198.51.100.1 (Network is unreachable"), "{text}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lookup_tells_gateway_and_source() {
    let mut host = Host::new().await;
    let eth0 = host.eth0.index;
    let gateway = "192.0.2.254".parse().unwrap();
    host.put(Route::new("198.51.100.0/24".parse().unwrap(), 4).via_gateway(gateway, eth0)).await;
    let far = lookup_route(&mut host.connection, "198.51.100.7".parse().unwrap()).await.unwrap();
    assert_eq!((far.link, far.gateway), (eth0, Some(gateway)));
    assert_eq!(far.source, Some("192.0.2.1".parse().unwrap()));
    let near = lookup_route(&mut host.connection, "192.0.2.7".parse().unwrap()).await.unwrap();
    assert_eq!((near.link, near.gateway), (eth0, None));
    let none =
        lookup_route(&mut host.connection, "203.0.113.1".parse().unwrap()).await.unwrap_err();
    assert!(none.unreachable());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_default_route_through_a_device_of_pods_misleads_nobody() {
    let mut host = Host::new().await;
    let mut search = search(Families::V4, vec![Selector::DefaultRoute]);
    let eth0 = host.eth0.index;
    let gateway = "192.0.2.254".parse().unwrap();
    let mut route = Route::new("0.0.0.0/0".parse().unwrap(), 3).via_gateway(gateway, eth0);
    route.metric = 100;
    host.put(route).await;
    let first = select_interface(&mut host.connection, &search).await.unwrap();

    // As a DHCP client does that takes the tunnel for a network card.
    let pair = LinkSpecKind::Veth { peer: "pods1".to_owned(), peer_namespace: None };
    let mut pods = LinkSpec::new("pods0", pair);
    pods.up = true;
    let (pods, _) = ensure_link(&mut host.connection, &pods).await.unwrap();
    host.put(Address::new(pods.index, "10.244.1.0/32".parse().unwrap())).await;
    host.put(Route::new("0.0.0.0/0".parse().unwrap(), 3).direct(pods.index)).await;
    let again = select_interface(&mut host.connection, &search).await.unwrap();
    assert_eq!(again.name, "eth0");
    // Nor while the right one has gone, unless there never was one.
    host.remove(route).await;
    let left = select_interface(&mut host.connection, &search).await.unwrap();
    assert_eq!((left.name.as_str(), left.is_doubtful), ("pods0", true));
    search.current = Some(first.clone());
    assert_eq!(select_interface(&mut host.connection, &search).await.unwrap(), first);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn an_address_stays_for_as_long_as_the_kernel_has_it() {
    let mut host = Host::new().await;
    let mut search = search(Families::Dual, vec![Selector::Name("eth0".to_owned())]);
    let eth0 = host.eth0.index;
    search.current = select_interface(&mut host.connection, &search).await.ok();
    let first = search.current.clone().unwrap();
    assert_eq!(first.faults, []);
    // A second one, a private one, one that moves between machines, each beside what is there and in the kernel's order before it.
    for more in
        ["2001:db8::2/64", "fd00:9::1/64", "2001:db8::100/128", "192.0.2.9/24", "169.254.1.1/16"]
    {
        let mut address = Address::new(eth0, more.parse().unwrap());
        address.no_duplicate_detection = true;
        host.put(address).await;
        assert_eq!(select_interface(&mut host.connection, &search).await.unwrap(), first, "{more}");
    }
    host.remove(Address::new(eth0, "2001:db8::1/64".parse().unwrap())).await;
    let other = select_interface(&mut host.connection, &search).await.unwrap();
    assert_eq!(other.v4, first.v4);
    assert!(other.v6.is_some_and(|v6| first.v6 != Some(v6) && !v6.is_unicast_link_local()));
    // Nothing is left but what is link-local: the last one stays.
    for one in ["2001:db8::2/64", "fd00:9::1/64", "2001:db8::100/128"] {
        host.remove(Address::new(eth0, one.parse().unwrap())).await;
    }
    search.current = Some(other.clone());
    let last = select_interface(&mut host.connection, &search).await.unwrap();
    assert_eq!((last.v4, last.v6), (other.v4, other.v6));
    assert_eq!(last.faults, [InterfaceFault::NoAddress(IpFamily::V6)]);
    delete_link(&mut host.connection, eth0).await.unwrap();
    let last = select_interface(&mut host.connection, &search).await.unwrap();
    assert_eq!((last.v6, last.faults), (other.v6, vec![InterfaceFault::Missing]));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_may_bring_an_interface_is_told_and_nothing_else_is() {
    let mut host = Host::new().await;
    let mut changes = InterfaceChanges::open(&host.namespace).unwrap();
    let eth0 = host.eth0.index;
    let heard = async |changes: &mut InterfaceChanges, within| {
        timeout(Duration::from_millis(within), changes.next()).await.is_ok()
    };
    // The kernel has more to tell of what was made just before.
    while heard(&mut changes, 500).await {}
    let gateway = "192.0.2.254".parse().unwrap();
    let route = |to: &str| Route::new(to.parse().unwrap(), 3).via_gateway(gateway, eth0);
    host.put(route("198.51.100.0/24")).await;
    assert!(!heard(&mut changes, 300).await);
    host.put(route("0.0.0.0/0")).await;
    assert!(heard(&mut changes, 5000).await, "a default route");
    host.put(Address::new(eth0, "192.0.2.9/24".parse().unwrap())).await;
    assert!(heard(&mut changes, 5000).await, "an address");
    let change = LinkChange { up: Some(false), ..LinkChange::default() };
    alter_link(&mut host.connection, eth0, &change).await.unwrap();
    assert!(heard(&mut changes, 5000).await, "a device");
}
