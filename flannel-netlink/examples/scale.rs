//! How long a table of many peers takes, and how much memory: `scale [PEERS]`.
//!
//! Works in a network namespace of its own, so it needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`:
//! `unshare -rn cargo run --release -p flannel-netlink --example scale`.

use std::{error::Error, fs, net::Ipv4Addr, time::Duration};

use flannel_netlink::{
    Connection, LinkSpec, LinkSpecKind, Namespace, Table, ensure_link,
    state::{Address, ForwardingEntry, MacAddress, Neighbour, Nexthop, Object, Route, Vxlan},
    table::Mark,
};
use ipnetwork::{IpNetwork, Ipv4Network};
use tokio::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let peers = std::env::args().nth(1).map_or(Ok(10_000), |peers| peers.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(peers))
}

async fn measure(peers: u32) -> Result<(), Box<dyn Error>> {
    let (namespace, _connection, link) = host().await?;
    let mut phase = Phase::begin();
    let mut table = Table::open(&namespace, mark()).await?;
    phase.end("opened");
    want_all(&mut table, link, peers);
    phase.end("wanted");
    let report = table.sync().await?;
    assert_eq!((report.added, report.failures.len()), (4 * peers as usize, 0));
    phase.end("synced");
    for number in peers..peers + ONE_BY_ONE {
        for object in of_table(&mut table, link, number) {
            table.want(object);
        }
        assert_eq!(table.sync().await?.added, 4);
        for object in of_table(&mut table, link, number) {
            table.forget(&object.key());
        }
        assert_eq!(table.sync().await?.removed, 4);
    }
    phase.end("50 peers came and went, one by one");
    drop(table);

    phase.end("closed");
    let mut table = Table::open(&namespace, mark()).await?;
    want_all(&mut table, link, peers);
    let report = table.sync().await?;
    assert_eq!(report.written(), 0);
    phase.end("opened, wanted and synced again");
    table.want_only([]);
    assert_eq!(table.sync().await?.removed, 4 * peers as usize);
    phase.end("all removed");
    drop(table);

    let (_namespace, mut connection, link) = host().await?;
    let objects = (0..peers).flat_map(|number| peer(link, number, FIRST_NEXTHOP + number));
    let requests: Vec<_> = objects.map(|object| object.replace()).collect();
    phase.begin_again();
    for result in connection.apply(&requests).await {
        result?;
    }
    phase.end("the same requests without a table");
    Ok(())
}

/// One line of the output.
struct Phase {
    start: Instant,
    busy: u64,
}

impl Phase {
    fn begin() -> Self {
        println!("{:<36} {:>9} {:>9} {:>9} {:>9}", "", "took, ms", "CPU, ms", "RSS, KiB", "peak");
        Self { start: Instant::now(), busy: busy() }
    }

    fn begin_again(&mut self) {
        (self.start, self.busy) = (Instant::now(), busy());
    }

    fn end(&mut self, what: &str) {
        let took = self.start.elapsed().as_secs_f64() * 1e3;
        let spent = Duration::from_nanos(busy() - self.busy).as_secs_f64() * 1e3;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |field: &str| -> u32 {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let (now, peak) = (kib("VmRSS:"), kib("VmHWM:"));
        println!("{what:<36} {took:>9.2} {spent:>9.2} {now:>9} {peak:>9}");
        self.begin_again();
    }
}

/// How long the main thread has run, nanoseconds.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A namespace with a VXLAN device, and the device's index.
async fn host() -> Result<(Namespace, Connection, u32), Box<dyn Error>> {
    let namespace = Namespace::create()?;
    let mut connection = Connection::open(&namespace)?;
    let pair = LinkSpecKind::Veth { peer: "far0".to_owned(), peer_namespace: None };
    let (eth0, _) = ensure_link(&mut connection, &LinkSpec::new("eth0", pair.clone())).await?;
    ensure_link(&mut connection, &LinkSpec::new("far0", pair)).await?;
    let address = Object::from(Address::new(eth0.index, "192.0.2.1/24".parse()?));
    connection.apply_one(address.replace()).await?;
    let mut vxlan = Vxlan::new(1);
    vxlan.local = Some([192, 0, 2, 1].into());
    let spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(vxlan));
    let (device, _) = ensure_link(&mut connection, &spec).await?;
    Ok((namespace, connection, device.index))
}

fn mark() -> Mark {
    let everything = Ipv4Network::new([10, 0, 0, 0].into(), 8).expect("8 is a length");
    let mut mark = Mark::new(PROTOCOL, [everything.into()]);
    mark.nexthops = FIRST_NEXTHOP..=FIRST_NEXTHOP + (1 << 20);
    mark.devices.insert("flannel.1".to_owned());
    mark
}

fn want_all(table: &mut Table, link: u32, peers: u32) {
    for number in 0..peers {
        for object in of_table(table, link, number) {
            table.want(object);
        }
    }
}

fn of_table(table: &mut Table, link: u32, number: u32) -> [Object; 4] {
    let id = table.nexthop_id(link, gateway(number).into()).expect("the range is large");
    peer(link, number, id)
}

/// Everything one peer needs on a VXLAN device.
fn peer(link: u32, number: u32, id: u32) -> [Object; 4] {
    let gateway = gateway(number);
    let [_, _, high, low] = number.to_be_bytes();
    let mac = MacAddress::new([0x0e, 0, 0, 0, high, low]);
    let remote = Ipv4Addr::new(198, 18, high, low);
    let subnet: IpNetwork = Ipv4Network::new(gateway, 24).expect("24 is a length").into();
    let mut nexthop = Nexthop::new(id, link, gateway.into(), PROTOCOL);
    nexthop.onlink = true;
    [
        nexthop.into(),
        ForwardingEntry::new(link, mac, remote.into()).into(),
        Neighbour::new(link, gateway.into(), mac).into(),
        Route::new(subnet, PROTOCOL).via_nexthop(id).into(),
    ]
}

fn gateway(number: u32) -> Ipv4Addr {
    let [_, _, high, low] = number.to_be_bytes();
    [10, high, low, 0].into()
}

const PROTOCOL: u8 = 90;
const FIRST_NEXTHOP: u32 = 1 << 20;
const ONE_BY_ONE: u32 = 50;
