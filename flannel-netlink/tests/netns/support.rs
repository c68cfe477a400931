use std::time::Duration;

use flannel_netlink::{
    Connection, LinkSpec, LinkSpecKind, Monitor, Namespace, Notice, Subject, ensure_link,
    link_by_name,
    state::{Address, Link, Object},
};
use ipnetwork::IpNetwork;
use tokio::time::{sleep, timeout};

/// A namespace with one veth device `eth0` that carries packets, and a connection to it.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) connection: Connection,
    pub(crate) eth0: Link,
}

impl Host {
    /// `eth0` has 192.0.2.1/24 and 2001:db8::1/64.
    pub(crate) async fn new() -> Self {
        let namespace = fresh();
        let mut connection = Connection::open(&namespace).unwrap();
        let pair = LinkSpecKind::Veth { peer: "far0".to_owned(), peer_namespace: None };
        // Addresses that come and devices that start to run later are news to a table.
        let quiet = |name| {
            let mut spec = LinkSpec::new(name, pair.clone());
            spec.no_link_local = true;
            spec
        };
        ensure_link(&mut connection, &quiet("eth0")).await.unwrap();
        ensure_link(&mut connection, &quiet("far0")).await.unwrap();
        let running = async {
            loop {
                let eth0 = link_by_name(&mut connection, "eth0").await.unwrap().unwrap();
                let far0 = link_by_name(&mut connection, "far0").await.unwrap().unwrap();
                if eth0.running && far0.running {
                    return eth0;
                }
                sleep(Duration::from_millis(1)).await;
            }
        };
        let eth0 = timeout(Duration::from_secs(60), running).await.expect("both ends run");
        let mut monitor = Monitor::open(&namespace).unwrap();
        let mut host = Self { namespace, connection, eth0 };
        let mut untold: Vec<IpNetwork> =
            ["192.0.2.1/24", "2001:db8::1/64"].map(|address| address.parse().unwrap()).to_vec();
        for address in &untold {
            let mut address = Address::new(host.eth0.index, *address);
            address.no_duplicate_detection = true;
            host.put(address).await;
        }
        // The kernel tells of an IPv6 address later than it answers.
        let told = async {
            while !untold.is_empty() {
                let notice = monitor.next().await.unwrap();
                if let Notice::Added { subject: Subject::Object(Object::Address(it)), .. } = notice
                {
                    untold.retain(|address| *address != it.address);
                }
            }
        };
        timeout(Duration::from_secs(60), told).await.expect("both addresses are told of");
        host
    }

    pub(crate) async fn put(&mut self, object: impl Into<Object>) {
        self.connection.apply_one(object.into().replace()).await.unwrap();
    }

    pub(crate) async fn remove(&mut self, object: impl Into<Object>) {
        self.connection.apply_one(object.into().delete()).await.unwrap();
    }
}

/// A new namespace, after making sure that work for it really happens there: a test that ran in the
/// machine's own namespace by mistake would alter the machine.
pub(crate) fn fresh() -> Namespace {
    let namespace = Namespace::create().unwrap();
    let inside = namespace.run(Namespace::current).unwrap().unwrap();
    assert_eq!(inside, namespace, "the work would run elsewhere");
    assert_ne!(inside, Namespace::current().unwrap(), "the work would run here");
    namespace
}
