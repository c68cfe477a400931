//! Load both ways while peers come and go.

use std::{fs, io::Read, process::Stdio, thread, time::Duration};

use tokio::time::{Instant, interval};

use crate::{
    lab::{Kind, Lab},
    traffic::{Traffic, socket},
};

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
    let end = started + seconds.map_or(SHORT, Duration::from_secs);
    let traffic = Traffic::start(&lab.pods[0], &lab.pods[1]);
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
    let packets = traffic.finish();
    println!("{:?}, {changes} changes, resident {before} kB, then {after} kB", started.elapsed());
    for (n, count) in packets.into_iter().enumerate() {
        let overflow = [overflow(&lab, n), overflow(&lab, 1 - n)];
        assert_eq!((count.received, count.reordered), (count.sent, 0), "{count:?}, {overflow:?}");
    }
    assert!(seconds.is_none() || after < before + MAX_GROWTH, "{before} kB, then {after} kB");
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
    // A sender that takes a second, on a machine with other work, outlasts the hog: the kernel gives others a twentieth of each.
    for _ in 0..ATTEMPTS {
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
        let is_stuck = to.peek(&mut [0; 4]).is_err();
        hog.kill().unwrap();
        hog.wait().unwrap();
        to.set_nonblocking(false).unwrap();
        let mut packet = [0; 4];
        for number in 0..BACKLOG {
            assert_eq!(to.recv(&mut packet).unwrap(), 4, "after {number}");
            assert_eq!(u32::from_be_bytes(packet), number);
        }
        if is_stuck {
            return;
        }
    }
    panic!("a worker was running each time");
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
const MAX_GROWTH: u64 = 4096;
/// Packets that wait for a worker: four times what a TUN device holds by itself.
const BACKLOG: u32 = 2000;
/// How often they may have to be sent until all have waited.
const ATTEMPTS: usize = 20;
/// How long it takes unless somebody says otherwise.
const SHORT: Duration = Duration::from_secs(3);
