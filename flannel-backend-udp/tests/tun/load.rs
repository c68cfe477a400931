//! Load both ways while peers come and go.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use flannel_testbed::Pod;
use socket2::SockRef;
use tokio::time::{Instant, interval};

use crate::lab::{Kind, Lab};

/// `FLANNEL_UDP_LOAD_SECONDS` makes it longer, and looks at memory: other tests of this process would count as well.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn peers_that_come_and_go_disturb_nobody() {
    let _load = crate::LOAD.lock().await;
    let mut lab = Lab::new(&[Kind::Ours, Kind::Ours, Kind::Ours]).await;
    assert!(lab.reaches(0, 1).await || lab.reaches(0, 1).await);
    let seconds: Option<u64> =
        std::env::var("FLANNEL_UDP_LOAD_SECONDS").ok().and_then(|text| text.parse().ok());
    let started = Instant::now();
    let end = started + Duration::from_secs(seconds.unwrap_or(3));
    let stops = Arc::new(AtomicBool::new(false));
    let mut packets = Vec::new();
    let mut streams = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        packets.push(Packets::start(&lab.pods[from], &lab.pods[to], &stops));
        streams.push(Stream::start(&lab.pods[from], &lab.pods[to], &stops));
    }
    let mut every = interval(Duration::from_millis(100));
    let (mut is_there, mut changes, mut memory) = (true, 0, 0);
    while Instant::now() < end {
        every.tick().await;
        is_there = !is_there;
        changes += 1;
        if changes == WARM {
            memory = resident();
        }
        let mut leases = lab.leases.clone();
        if !is_there {
            leases.remove(2);
        }
        for n in [0, 1] {
            let peers = lab.peers_of(n, leases.clone());
            let report = lab.node(n).network.sync(&peers).await.unwrap();
            assert_eq!(report.writes(), 1);
        }
        // On a busy machine an answer may be late, and a worker goes by the old table for what it has in hand.
        let is_right = async || lab.reaches(0, 2).await == is_there;
        assert!(is_right().await || is_right().await || is_right().await, "{is_there}");
    }
    let (before, after) = (memory, resident());
    stops.store(true, Ordering::Relaxed);
    let packets: Vec<Count> = packets.into_iter().map(Packets::finish).collect();
    let bytes: Vec<u64> = streams.into_iter().map(Stream::finish).collect();
    println!("{:?}, {changes} changes", started.elapsed());
    println!("packets {packets:?}, bytes of TCP {bytes:?}");
    println!("resident {before} kB, then {after} kB");
    for (n, count) in packets.into_iter().enumerate() {
        let overflow = [overflow(&lab, n), overflow(&lab, 1 - n)];
        assert!(count.sent > 100);
        assert_eq!((count.received, count.reordered), (count.sent, 0), "{count:?}, {overflow:?}");
    }
    assert!(bytes.iter().all(|bytes| *bytes > 1 << 20), "{bytes:?}");
    assert!(seconds.is_none() || after < before + MOST_GROWTH, "{before} kB, then {after} kB");
}

/// Numbered packets, some at once, so that they are joined on their way.
struct Packets {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Count>,
}

#[derive(Debug, Default)]
struct Count {
    sent: u64,
    received: u64,
    reordered: u64,
    longest_gap: Duration,
}

impl Packets {
    fn start(from: &Pod, to: &Pod, stops: &Arc<AtomicBool>) -> Self {
        let (sender, receiver) = (socket(from), socket(to));
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (stops, stopped) = (Arc::clone(stops), Arc::clone(stops));
        let sender = thread::spawn(move || {
            let mut number = 0_u64;
            while !stops.load(Ordering::Relaxed) {
                for _ in 0..AT_ONCE {
                    let mut packet = [0x5a; 200];
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    sender.send(&packet).unwrap();
                    number += 1;
                }
                thread::sleep(PAUSE);
            }
            number
        });
        let receiver = thread::spawn(move || {
            let (mut count, mut next, mut last) = (Count::default(), 0, Instant::now());
            let mut packet = [0; 200];
            loop {
                let Ok(len) = receiver.recv(&mut packet) else {
                    if stopped.load(Ordering::Relaxed) {
                        return count;
                    }
                    continue;
                };
                assert!(len == packet.len() && packet[8..] == [0x5a; 192]);
                let number = u64::from_be_bytes(*packet.first_chunk().unwrap());
                count.received += 1;
                count.reordered += u64::from(number < next);
                next = next.max(number + 1);
                count.longest_gap = count.longest_gap.max(last.elapsed());
                last = Instant::now();
            }
        });
        Self { sender, receiver }
    }

    fn finish(self) -> Count {
        let sent = self.sender.join().unwrap();
        Count { sent, ..self.receiver.join().unwrap() }
    }
}

/// One TCP connection, whose bytes are looked at.
struct Stream {
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    fn start(from: &Pod, to: &Pod, stops: &Arc<AtomicBool>) -> Self {
        let address = SocketAddr::from((to.ip(), 0));
        let listener = to.namespace().run(|| TcpListener::bind(address).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sender = from.namespace().run(|| TcpStream::connect(address).unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        SockRef::from(&sender).set_linger(Some(Duration::from_secs(5))).unwrap();
        let stops = Arc::clone(stops);
        let data: Vec<u8> = (0..PATTERN * 256).map(|n| (n % PATTERN) as u8).collect();
        let sender = thread::spawn(move || {
            let mut sent = 0;
            while !stops.load(Ordering::Relaxed) {
                sender.write_all(&data).unwrap();
                sent += data.len() as u64;
                thread::sleep(PAUSE);
            }
            sent
        });
        let receiver = thread::spawn(move || {
            let (mut buffer, mut received) = (vec![0; 64 << 10], 0);
            loop {
                let len = receiver.read(&mut buffer).unwrap();
                if len == 0 {
                    return received;
                }
                let is_right = |(n, byte): (usize, &u8)| {
                    (received as usize + n) % PATTERN == usize::from(*byte)
                };
                assert!(buffer[..len].iter().enumerate().all(is_right), "after {received}");
                received += len as u64;
            }
        });
        Self { sender, receiver }
    }

    fn finish(self) -> u64 {
        let sent = self.sender.join().unwrap();
        assert_eq!(self.receiver.join().unwrap(), sent);
        sent
    }
}

/// A worker is a thread like others: while it has no processor, packets wait. At the kernel's own length of the queue, most of these
/// would be lost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn a_worker_without_a_processor_loses_nothing() {
    let _load = crate::LOAD.lock().await;
    let lab = Lab::new(&[Kind::Ours, Kind::Ours]).await;
    assert!(lab.reaches(0, 1).await || lab.reaches(0, 1).await);
    let (from, to) = (socket(&lab.pods[0]), socket(&lab.pods[1]));
    from.connect(to.local_addr().unwrap()).unwrap();
    to.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let cpu = thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1).to_string();
    for worker in workers() {
        let mut pin = std::process::Command::new("taskset");
        pin.args(["-pc", &cpu, &worker]).stdout(Stdio::null()).stderr(Stdio::null());
        // Those of another test may have ended.
        pin.status().unwrap();
    }
    // It goes before all that is not of its kind, and the kernel ends it if we do not.
    let hog = "ulimit -t 1; echo; while :; do :; done";
    let mut command = std::process::Command::new("taskset");
    command.args(["-c", &cpu, "chrt", "-f", "1", "sh", "-c", hog]).stdout(Stdio::piped());
    let mut hog = command.spawn().unwrap();
    hog.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    for number in 0..BACKLOG {
        from.send(&number.to_be_bytes()).unwrap();
    }
    to.set_nonblocking(true).unwrap();
    let carried = to.recv(&mut [0; 4]);
    hog.kill().unwrap();
    hog.wait().unwrap();
    assert!(carried.is_err(), "a worker was running");
    to.set_nonblocking(false).unwrap();
    let mut packet = [0; 4];
    for number in 0..BACKLOG {
        assert_eq!(to.recv(&mut packet).unwrap(), 4, "after {number}");
        assert_eq!(u32::from_be_bytes(packet), number);
    }
}

/// The threads that carry packets in this process, by their numbers.
fn workers() -> Vec<String> {
    let mut workers = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.starts_with("udp-") {
            workers.push(task.file_name().into_string().unwrap());
        }
    }
    workers
}

fn socket(pod: &Pod) -> UdpSocket {
    let address = SocketAddr::from((pod.ip(), 0));
    let socket = pod.namespace().run(|| UdpSocket::bind(address).unwrap()).unwrap();
    // What a test does not read in time is nobody's loss.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket
}

/// Packets that the device of a host had no room for.
fn overflow(lab: &Lab, n: usize) -> u64 {
    let devices = lab.host(n).namespace().run(|| fs::read_to_string("/proc/thread-self/net/dev"));
    let devices = devices.unwrap().unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix("flannel0:")).unwrap();
    // Eight numbers of what came, then those of what went: bytes, packets, errors, drops.
    line.split_whitespace().nth(8 + 3).unwrap().parse().unwrap()
}

/// What this process, with the engines of all hosts, keeps in memory, kB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// After so many changes all buffers have been used.
const WARM: u32 = 15;
/// kB.
const MOST_GROWTH: u64 = 4096;
/// Packets that wait for a worker: four times what a TUN device holds by itself.
const BACKLOG: u32 = 2000;
const AT_ONCE: u32 = 4;
const PAUSE: Duration = Duration::from_millis(2);
/// A prime number of bytes, which no segment is a multiple of.
const PATTERN: usize = 251;
