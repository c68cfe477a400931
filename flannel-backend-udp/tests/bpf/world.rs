//! Hosts whose nodes run engines of the test's choice, and what tests do to them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_udp::{Stats, Udp};
use flannel_core::{
    Backend, NetworkConfig,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::Namespace;
use flannel_testbed::Host;

/// Makes the backend of a host.
pub(crate) type Factory = Box<dyn Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync>;

/// Some hosts, their nodes, and what the nodes' backends say of themselves.
pub(crate) struct Cluster {
    pub(crate) world: KernelWorld<Factory>,
    pub(crate) nodes: Nodes,
    backends: Arc<Mutex<BTreeMap<String, Arc<Udp>>>>,
}

impl Cluster {
    /// IPv4, with these options of the backend, and with the userspace engine on the hosts named so.
    pub(crate) async fn start(options: &str, userspace: &'static [&'static str]) -> Self {
        let config = format!(
            r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"udp","Engine":"ebpf"{options}}}}}"#
        );
        Self::of(&config, userspace).await
    }

    pub(crate) async fn of(config: &str, userspace: &'static [&'static str]) -> Self {
        let backends: Arc<Mutex<BTreeMap<String, Arc<Udp>>>> = Arc::default();
        let made = Arc::clone(&backends);
        let make: Factory = Box::new(move |host, config| {
            let text = serde_json(config, userspace.contains(&host.name()));
            let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
            let finder = UplinkFinder::new(host.namespace(), config, &options).unwrap();
            let udp = Arc::new(Udp::new(&text.parse().unwrap(), finder).unwrap());
            made.lock().unwrap().insert(host.name().to_owned(), Arc::clone(&udp));
            udp
        });
        let world = KernelWorld::new(config, make).await;
        let nodes = Nodes::start(&world).await;
        Self { world, nodes, backends }
    }

    pub(crate) fn stats(&self, host: usize) -> Stats {
        let name = self.host(host).name();
        self.backends.lock().unwrap()[name].stats()
    }

    pub(crate) fn host(&self, host: usize) -> &Host {
        self.world.testbed().host(host)
    }

    /// Runs iproute2 or ethtool on a host, which has to succeed.
    pub(crate) fn run(&self, host: usize, command: &str) -> String {
        run(self.host(host).namespace(), command)
    }

    /// Restarts the node of host 0.
    pub(crate) async fn restart(&mut self) {
        self.nodes.restart(&self.world).await;
    }

    pub(crate) async fn reaches(&self, from: usize, to: usize) -> bool {
        self.world.reaches(from, to).await
    }

    /// Two UDP sockets, in the pod of one host and in that of another, and the address of the second.
    pub(crate) fn sockets(&self, from: usize, to: usize) -> (UdpSocket, UdpSocket, SocketAddr) {
        let (from, to) = (self.world.pod(from), self.world.pod(to));
        let sender = socket(from.namespace(), from.ip());
        let receiver = socket(to.namespace(), to.ip());
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let address = receiver.local_addr().unwrap();
        (sender, receiver, address)
    }
}

/// The same configuration with another engine. Only what tests write is understood.
fn serde_json(config: &NetworkConfig, is_userspace: bool) -> String {
    let options = config.backend().options();
    let source_check = options.raw("SourceCheck").unwrap_or("\"peer\"").to_owned();
    let discovery = options.boolean("PathMTUDiscovery", true).unwrap();
    let engine = if is_userspace { "userspace" } else { "ebpf" };
    let mut members = Vec::new();
    if let Some(range) = config.ipv4() {
        members.push(format!(r#""Network":"{}""#, range.network()));
    } else {
        members.push(r#""EnableIPv4":false"#.to_owned());
    }
    if let Some(range) = config.ipv6() {
        members.push(format!(r#""EnableIPv6":true,"IPv6Network":"{}""#, range.network()));
    }
    let members = members.join(",");
    format!(
        r#"{{{members},"Backend":{{"Type":"udp","Engine":"{engine}","SourceCheck":{source_check},"PathMTUDiscovery":{discovery}}}}}"#
    )
}

pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let done = namespace.run(|| std::process::Command::new(program).args(words).output().unwrap());
    let done = done.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{command}: {}", text(&done.stderr));
    text(&done.stdout)
}

pub(crate) fn socket(namespace: &Namespace, ip: IpAddr) -> UdpSocket {
    namespace.run(|| UdpSocket::bind((ip, 0)).unwrap()).unwrap()
}

/// An IPv4 packet with a UDP datagram in it, whose checksum is left out.
pub(crate) fn packet(from: Ipv4Addr, to: SocketAddr, ttl: u8, data: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("IPv4") };
    let len = (28 + data.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0, 0, ttl, 17, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.ip().octets());
    let sum: u32 = packet.chunks(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(5000_u16.to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(data);
    packet
}

/// Waits until it is so.
pub(crate) async fn eventually(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits)
        .await
        .expect("it is not so after 20 seconds");
}

/// What came, if anything.
pub(crate) fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let len = socket.recv(&mut buffer).ok()?;
    buffer.truncate(len);
    Some(buffer)
}
