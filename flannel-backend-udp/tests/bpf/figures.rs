//! Figures of the eBPF engine beside those of other backends, taken in turn.

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use flannel_backend::{UplinkFinder, UplinkOptions, testing::KernelWorld};
use flannel_backend_hostgw::HostGw;
use flannel_backend_udp::Udp;
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, NetworkConfig, testing::network::Nodes};
use flannel_netlink::Namespace;
use flannel_testbed::{Host, Pod, probe::tcp_throughput};
use tokio::time::Instant;

use crate::support::Make;

/// Prints medians. `FIGURES_OFFLOADS=off` turns the segmentation and checksum offloads of all devices off, `FIGURES_ROUNDS` says
/// how often each backend has its turn (1), `FIGURES_SECONDS` how long one measurement takes (1), `FIGURES_ONLY` names the one that
/// is wanted.
#[tokio::test]
#[ignore = "prints figures: run it as root on a quiet machine, with --nocapture"]
async fn figures_beside_other_backends() {
    let rounds: usize = setting("FIGURES_ROUNDS").unwrap_or(1);
    let duration = Duration::from_secs(setting("FIGURES_SECONDS").unwrap_or(1));
    let is_off = setting::<String>("FIGURES_OFFLOADS").is_some_and(|it| it == "off");
    let only: Option<String> = setting("FIGURES_ONLY");
    let mut subjects = Vec::new();
    for (name, backend, make) in [
        ("ebpf", r#"{"Type":"udp","Engine":"ebpf"}"#, udp as Make),
        ("vxlan", r#"{"Type":"vxlan"}"#, vxlan as Make),
        ("host-gw", r#"{"Type":"host-gw"}"#, host_gw as Make),
        ("userspace", r#"{"Type":"udp","Engine":"userspace"}"#, udp as Make),
    ] {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{backend}}}"#);
        let world = KernelWorld::new(&config, make).await;
        let nodes = Nodes::start(&world).await;
        if is_off {
            for n in 0..2 {
                turn_offloads_off(world.testbed().host(n).namespace());
                turn_offloads_off(world.pod(n).namespace());
            }
        }
        subjects.push((name, world, nodes, Vec::new()));
    }
    for _ in 0..rounds {
        for (name, world, _, taken) in &mut subjects {
            let mut figures = measure(world.pod(0), world.pod(1), duration).await;
            if *name != "host-gw" {
                figures.hosts =
                    between_hosts(world.testbed().host(0), world.testbed().host(1), duration);
            }
            taken.push(figures);
        }
    }
    let heads = ["TCP Gbit/s", "hosts' TCP Gbit/s", "64-byte kpackets/s", "RTT p50 us"];
    println!("{:10} {:>22} {:>22} {:>22} {:>22}", "", heads[0], heads[1], heads[2], heads[3]);
    for (name, _, _, taken) in subjects {
        let column = |of: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = taken.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            let (least, most) = (values[0], values[values.len() - 1]);
            format!("{:.1} ({least:.1}-{most:.1})", values[values.len() / 2])
        };
        let columns = [
            column(|it| it.tcp),
            column(|it| it.hosts),
            column(|it| it.packets),
            column(|it| it.rtt),
        ];
        println!(
            "{name:10} {:>22} {:>22} {:>22} {:>22}",
            columns[0], columns[1], columns[2], columns[3]
        );
    }
}

struct Figures {
    /// Gbit/s.
    tcp: f64,
    /// The same between the hosts' own addresses of the network, without bridges.
    hosts: f64,
    /// Thousands each second.
    packets: f64,
    /// Microseconds.
    rtt: f64,
}

async fn measure(from: &Pod, to: &Pod, duration: Duration) -> Figures {
    let went = tcp_throughput(from, to, duration).await.unwrap();
    let tcp = went.bytes as f64 * 8e-9 / went.elapsed.as_secs_f64();
    let packets = packets(from, to, duration) / 1e3;
    let mut times = Vec::new();
    for _ in 0..1000 {
        times.push(from.ping(to.ip()).await.unwrap().round_trip);
    }
    times.sort();
    Figures { tcp, hosts: 0.0, packets, rtt: times[times.len() / 2].as_secs_f64() * 1e6 }
}

/// Gbit/s over one TCP connection.
fn between_hosts(from: &Host, to: &Host, duration: Duration) -> f64 {
    let listen = || TcpListener::bind("10.244.2.0:0").unwrap();
    let listener = to.namespace().run(listen).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sender = from.namespace().run(|| TcpStream::connect(address).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let counter = thread::spawn(move || {
        let (mut buffer, mut bytes) = (vec![0; 128 << 10], 0_u64);
        while let Ok(n @ 1..) = receiver.read(&mut buffer) {
            bytes += n as u64;
        }
        bytes
    });
    let began = Instant::now();
    let data = vec![0; 128 << 10];
    while began.elapsed() < duration {
        sender.write_all(&data).unwrap();
    }
    drop(sender);
    counter.join().unwrap() as f64 * 8e-9 / began.elapsed().as_secs_f64()
}

/// How many UDP packets of 64 bytes arrive each second.
fn packets(from: &Pod, to: &Pod, duration: Duration) -> f64 {
    let socket = |pod: &Pod| {
        let ip = pod.ip();
        pod.namespace().run(move || UdpSocket::bind((ip, 0)).unwrap()).unwrap()
    };
    let (sender, receiver) = (socket(from), socket(to));
    let address: SocketAddr = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let counter = thread::spawn(move || {
        let (mut buffer, mut count) = ([0; 64], 0_u64);
        while receiver.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    });
    let began = Instant::now();
    while began.elapsed() < duration {
        for _ in 0..64 {
            let _ = sender.send_to(&[0; 64 - 28], address);
        }
    }
    let took = began.elapsed();
    counter.join().unwrap() as f64 / took.as_secs_f64()
}

fn turn_offloads_off(namespace: &Namespace) {
    let done = namespace.run(|| {
        let arguments = ["-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off"];
        std::process::Command::new("ethtool").args(arguments).output().unwrap()
    });
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

pub(crate) fn finder(host: &Host, config: &NetworkConfig) -> UplinkFinder {
    let options = UplinkOptions { names: vec!["eth0".into()], ..UplinkOptions::default() };
    UplinkFinder::new(host.namespace(), config, &options).unwrap()
}

fn udp(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(Udp::new(config, finder(host, config)).unwrap())
}

fn vxlan(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(Vxlan::new(config, finder(host, config)).unwrap())
}

fn host_gw(host: &Host, config: &NetworkConfig) -> Arc<dyn Backend> {
    Arc::new(HostGw::new(config, finder(host, config)))
}
