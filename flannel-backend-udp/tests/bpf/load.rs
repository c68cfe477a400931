//! Load both ways while peers come and go.

use std::{
    collections::BTreeSet,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use flannel_backend::testing::KernelWorld;
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, NetworkConfig, testing::network::Nodes};
use flannel_testbed::{Host, Pod, probe::tcp_throughput};
use tokio::time::{Instant, interval};

use crate::{
    figures::finder,
    world::{Cluster, run, socket},
};

/// What became of numbered packets.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    sent: u64,
    lost: u64,
    /// Packets that came after a later one.
    late: u64,
    longest_gap: Duration,
}

/// What became of the TCP packets that came to both pods.
#[derive(Clone, Copy, Debug, Default)]
struct Bulk {
    bytes: u64,
    /// Packets that came before an earlier one.
    out_of_order: u64,
    /// How often a sender found that its packets had changed places.
    reordered: u64,
    /// Packets that were sent once more.
    again: u64,
}

impl Bulk {
    /// What the kernel has counted in these pods until now.
    fn counted(pods: [&Pod; 2]) -> Self {
        let texts = pods.map(|pod| {
            // Of the process or thread that reads.
            let read = || ["netstat", "snmp"].map(|it| format!("/proc/thread-self/net/{it}"));
            let read = || read().map(|path| std::fs::read_to_string(path).unwrap()).concat();
            pod.namespace().run(read).unwrap()
        });
        let sum = |name| texts.iter().map(|text| kernel_count(text, name)).sum();
        let reorders = ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"];
        Self {
            bytes: 0,
            out_of_order: sum("TCPOFOQueue"),
            reordered: reorders.into_iter().map(sum).sum(),
            again: sum("RetransSegs"),
        }
    }

    fn since(self, before: Self, bytes: u64) -> Self {
        Self {
            bytes,
            out_of_order: self.out_of_order - before.out_of_order,
            reordered: self.reordered - before.reordered,
            again: self.again - before.again,
        }
    }

    fn per_gigabyte(&self, count: u64) -> f64 {
        count as f64 * 1e9 / self.bytes as f64
    }
}

/// One number of a table with a line of names above each line of numbers.
fn kernel_count(text: &str, name: &str) -> u64 {
    let lines: Vec<_> = text.lines().collect();
    let found = lines.chunks(2).find_map(|pair| {
        let mut columns = pair[0].split(' ').zip(pair[1].split(' '));
        columns.find(|(column, _)| *column == name)
    });
    found.unwrap_or_else(|| panic!("no {name}")).1.parse().unwrap()
}

/// How long: 3 s unless `FLANNEL_LOAD_SECONDS` says otherwise.
fn duration() -> Duration {
    let seconds = std::env::var("FLANNEL_LOAD_SECONDS");
    Duration::from_secs(seconds.map_or(3, |seconds| seconds.parse().expect("a number")))
}

/// Sends a numbered packet every millisecond until told to stop, and counts on the other side.
fn flow(from: &Pod, to: &Pod, stops: &Arc<AtomicBool>) -> impl FnOnce() -> Flow {
    let (sender, receiver) = (socket(from.namespace(), from.ip()), socket(to.namespace(), to.ip()));
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let stops = Arc::clone(stops);
    let sending = thread::spawn(move || send(&sender, &stops));
    let counting = thread::spawn(move || count(&receiver));
    move || {
        let sent = sending.join().unwrap();
        let (came, flow) = counting.join().unwrap();
        Flow { sent, lost: sent - came, ..flow }
    }
}

fn send(socket: &UdpSocket, stops: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !stops.load(Ordering::Relaxed) {
        // A route that is lost, even for a moment, is an error here.
        socket.send(&number.to_be_bytes()).unwrap();
        number += 1;
        thread::sleep(Duration::from_millis(1));
    }
    number
}

/// How many came, and how.
fn count(socket: &UdpSocket) -> (u64, Flow) {
    let (mut came, mut flow) = (0, Flow::default());
    let (mut highest, mut last) = (0, Instant::now());
    let mut buffer = [0; 8];
    while socket.recv(&mut buffer).is_ok() {
        let number = u64::from_be_bytes(buffer);
        came += 1;
        flow.late += u64::from(number < highest);
        highest = highest.max(number);
        flow.longest_gap = flow.longest_gap.max(last.elapsed());
        last = Instant::now();
    }
    (came, flow)
}

/// Puts load on hosts 0 and 1, while both learn of and forget hosts 2 and 3 every 100 ms.
async fn load<B>(world: &KernelWorld<B>, nodes: &mut Nodes) -> ([Flow; 2], Bulk)
where
    B: Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync,
{
    let (a, b) = (world.pod(0), world.pod(1));
    let stops = Arc::new(AtomicBool::new(false));
    let flows = [flow(a, b, &stops), flow(b, a, &stops)];
    let before = Bulk::counted([a, b]);
    let bulk = async {
        let (there, back) =
            tokio::join!(tcp_throughput(a, b, duration()), tcp_throughput(b, a, duration()));
        stops.store(true, Ordering::Relaxed);
        let (there, back) = (there.unwrap(), back.unwrap());
        println!(
            "TCP {:.1} and {:.1} Mbit/s",
            there.bits_per_second() / 1e6,
            back.bits_per_second() / 1e6
        );
        Bulk::counted([a, b]).since(before, there.bytes + back.bytes)
    };
    let flap = async {
        let mut ticks = interval(Duration::from_millis(100));
        for n in 0.. {
            ticks.tick().await;
            for host in [0, 1] {
                if n % 2 == 0 {
                    nodes.sync_other(host, 2 + n / 2 % 2, vec![]).await;
                } else {
                    nodes.sync(host).await;
                }
            }
        }
    };
    let bulk = tokio::select! {
        bulk = bulk => bulk,
        () = flap => unreachable!("it goes on"),
    };
    (flows.map(|flow| flow()), bulk)
}

/// The numbers of BPF programs that a host runs for us.
fn programs(cluster: &Cluster, host: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for shown in [
        "tc filter show dev eth0 ingress",
        "tc filter show dev flannel-in8285 ingress",
        "ip route show proto 241",
    ] {
        let text = cluster.run(host, shown);
        let words: Vec<_> = text.split_whitespace().collect();
        let numbers = words.windows(2).filter(|it| ["id", "program"].contains(&it[0]));
        found.extend(numbers.map(|it| it[1].to_owned()));
    }
    found
}

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn nothing_is_lost_or_left_while_peers_come_and_go() {
    let mut cluster = Cluster::start("", &[]).await;
    let before = programs(&cluster, 0);
    assert_eq!(before.len(), 3, "{before:?}");
    let (flows, bulk) = load(&cluster.world, &mut cluster.nodes).await;
    println!("ebpf: {flows:?} {bulk:?}");
    let (vxlan_flows, vxlan) = load_of_vxlan().await;
    println!("vxlan: {vxlan_flows:?} {vxlan:?}");
    for count in [|it: &Bulk| it.out_of_order, |it: &Bulk| it.reordered] {
        let (ours, theirs) = (bulk.per_gigabyte(count(&bulk)), vxlan.per_gigabyte(count(&vxlan)));
        assert!(ours <= 2.0 * theirs + MORE_A_GIGABYTE, "{ours} {theirs}");
    }
    assert_eq!(programs(&cluster, 0), before, "nothing was loaded anew");
    for flow in flows {
        // What a full queue drops under this load is dropped on any way.
        assert!(flow.sent > 100 && flow.lost * 100 <= flow.sent, "{flow:?}");
        assert!(flow.longest_gap < Duration::from_millis(500), "{flow:?}");
        assert!(flow.late * 100 <= flow.sent, "{flow:?}");
    }
    for host in 0..2 {
        cluster.nodes.sync(host).await;
        for peer in 2..4 {
            assert!(cluster.reaches(host, peer).await, "{host} {peer}");
        }
    }
    let routes = run(cluster.host(0).namespace(), "ip route show proto 241");
    assert_eq!(routes.lines().count(), 1, "{routes}");
}

/// The same on the kernel's own way, to compare.
async fn load_of_vxlan() -> ([Flow; 2], Bulk) {
    let make = |host: &Host, config: &NetworkConfig| -> Arc<dyn Backend> {
        Arc::new(Vxlan::new(config, finder(host, config)).unwrap())
    };
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let world = KernelWorld::new(config, make).await;
    let mut nodes = Nodes::start(&world).await;
    load(&world, &mut nodes).await
}

/// What one machine may have more of than another way of the same run: queues overflow when they do.
const MORE_A_GIGABYTE: f64 = 50.0;
