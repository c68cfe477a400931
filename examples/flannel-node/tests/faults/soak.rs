//! A day's trouble in minutes.
#![expect(clippy::disallowed_methods, reason = "these tests are about programs")]

use std::{env, fmt, fs, process::Command, time::Duration};

use flannel_testbed::Host;
use tokio::time::{Instant, sleep};

use super::etcd_accidents::{CONFIG, SUBNETS, World};

/// What goes wrong. All of it is over when the next begins.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    AddressReplaced,
    ConfigAway,
    ConfigEdited,
    ConfigUnusable,
    DeviceDeleted,
    EtcdHangs,
    EtcdRestarts,
    LeaseDeleted,
    LinkDown,
    RouteDeleted,
    RulesFlushed,
    Unplugged,
}

use Trouble::*;

const ALL: [Trouble; 12] = [
    AddressReplaced,
    ConfigAway,
    ConfigEdited,
    ConfigUnusable,
    DeviceDeleted,
    EtcdHangs,
    EtcdRestarts,
    LeaseDeleted,
    LinkDown,
    RouteDeleted,
    RulesFlushed,
    Unplugged,
];

/// What a node takes, and how much it has said.
#[derive(Clone, Copy, Debug)]
struct Usage {
    memory: u64,
    descriptors: usize,
    lines: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, descriptors, lines } = self;
        write!(f, "{} KiB, {descriptors} descriptors, {lines} lines", memory / 1024)
    }
}

/// Three nodes and one trouble after the other: 45 s of them unless `FLANNEL_SOAK_SECONDS` says otherwise. Ten minutes stand for a
/// day, so each second for 144: 200 lines of log for an hour are 8 for a second.
#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_day_of_trouble_leaves_nothing_behind() {
    let number = |name: &str, default: u64| {
        env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    let length = Duration::from_secs(number("FLANNEL_SOAK_SECONDS", 45));
    let mut random = number("FLANNEL_SOAK_SEED", 1);
    let mut world = World::new(3, "vxlan").await;
    for _ in 0..3 {
        world.trial.add().await;
    }
    let subnets = world.trial.subnets();
    // Each once: what is used only then is there from then on.
    for (n, trouble) in ALL.into_iter().enumerate() {
        world.suffer(trouble, n % 3).await;
    }
    world.heals().await;
    let before: Vec<_> = (0..3).map(|n| world.usage(n)).collect();

    let (start, mut suffered) = (Instant::now(), 0_u32);
    while start.elapsed() < length {
        // Knuth's MMIX.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (trouble, n) = (ALL[(random >> 33) as usize % ALL.len()], (random >> 50) as usize % 3);
        world.suffer(trouble, n).await;
        suffered += 1;
    }
    let took = start.elapsed();
    world.heals().await;
    assert_eq!(world.trial.subnets(), subnets);
    for (n, before) in before.iter().enumerate() {
        let after = world.usage(n);
        println!("node {n}: {before} before, {after} after {suffered} troubles in {took:?}");
        let lines = (after.lines - before.lines) as u64;
        assert!(lines <= 8 * took.as_secs(), "{lines} lines");
        assert!(after.descriptors <= before.descriptors + 2, "{after}, {before} before");
        assert!(after.memory <= before.memory * 5 / 4 + (2 << 20), "{after}, {before} before");
    }
}

impl World {
    fn usage(&self, n: usize) -> Usage {
        let node = &self.trial.nodes[n];
        let pid = node.pid().expect("it runs");
        Usage {
            memory: node.resident_memory().expect("it has not ended"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
            lines: node.output().len(),
        }
    }

    /// Waits until all is as it should be, and quiet.
    async fn heals(&self) {
        self.recovers().await;
        sleep(Duration::from_secs(2)).await;
        self.recovers().await;
    }

    /// Lets `trouble` happen, to node `n` or to what all have in common.
    async fn suffer(&mut self, trouble: Trouble, n: usize) {
        let host = self.trial.host(n).clone();
        match trouble {
            AddressReplaced => {
                let before = host.addresses();
                let others = ["192.0.2.77/24", "2001:db8::77/64"].map(|it| it.parse().unwrap());
                host.set_addresses(others).await.unwrap();
                a_while().await;
                host.set_addresses(before).await.unwrap();
            }
            ConfigAway => {
                self.etcd.ctl(&["del", CONFIG]).await.unwrap();
                a_while().await;
                self.put_config().await;
            }
            ConfigEdited => {
                let edited = self.network.replacen('{', r#"{"SubnetMax":"10.244.250.0","#, 1);
                self.etcd.ctl(&["put", CONFIG, &edited]).await.unwrap();
                a_while().await;
                self.put_config().await;
            }
            ConfigUnusable => {
                self.etcd.ctl(&["put", CONFIG, r#"{"Network":"#]).await.unwrap();
                a_while().await;
                self.put_config().await;
            }
            DeviceDeleted => shell(&host, "ip link del flannel.1").await,
            EtcdHangs => {
                self.etcd.process().pause().unwrap();
                a_while().await;
                self.etcd.process().resume().unwrap();
            }
            EtcdRestarts => {
                self.kill_etcd().await;
                self.start_etcd("etcd").await;
            }
            LeaseDeleted => {
                let key = format!("{SUBNETS}{}", self.trial.key(n));
                self.etcd.ctl(&["del", &key]).await.unwrap();
            }
            LinkDown => {
                host.link_down().await.unwrap();
                a_while().await;
                host.link_up().await.unwrap();
            }
            RouteDeleted => {
                host.delete_route(self.trial.subnet((n + 1) % 3)).await.unwrap();
            }
            RulesFlushed => {
                shell(&host, "nft flush ruleset; iptables -F FORWARD; iptables -t nat -F").await;
            }
            Unplugged => {
                host.unplug().await.unwrap();
                a_while().await;
                host.plug().await.unwrap();
            }
        }
        a_while().await;
    }
}

/// Runs what may find nothing to do.
async fn shell(host: &Host, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{{ {line}; }} 2>/dev/null || true")]);
    host.run(command).await.unwrap();
}

async fn a_while() {
    sleep(Duration::from_millis(400)).await;
}
