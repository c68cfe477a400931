//! What thousands of peers cost.

use std::{fs, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    lab::{IPV4, Lab},
    thousands::leases,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn of_5000_peers_one_change_is_one_write() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    let attrs = lab.leases[1].attrs.clone();
    let mut writes = Vec::new();
    for port in [51820, 999, 999] {
        let peers = lab.peers_of(0, leases(&attrs, port).collect());
        let started = Instant::now();
        let report = lab.nodes[0].network.sync(&peers).await.unwrap();
        println!("{} writes in {:?}", report.writes(), started.elapsed());
        writes.push(report.writes());
    }
    // The peer that was there before is removed.
    assert_eq!(writes, [5001, 1, 0]);
    let before = ticks();
    sleep(IDLE).await;
    println!("{} ticks of 10 ms in {IDLE:?}, of all engines of this process", ticks() - before);
}

/// What threads that carry packets have taken of processors, in ticks.
fn ticks() -> u64 {
    let of = |stat: String| {
        let (name, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let used = |n: usize| fields.get(n)?.parse::<u64>().ok();
        name.contains("(wg-").then_some(used(11)? + used(12)?)
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|task| of(fs::read_to_string(task.path().join("stat")).ok()?)).sum()
}

const IDLE: Duration = Duration::from_secs(5);
