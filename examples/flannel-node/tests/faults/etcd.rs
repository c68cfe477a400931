//! What happens to etcd and to the leases in it, and what nodes and pods notice: real etcd, real nodes, real packets. Each test
//! prints what the node did and in how long; docs/faults.md has that as a table.
#![expect(clippy::disallowed_methods, reason = "these tests are about programs")]

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use flannel_testbed::{Blocks, Host, Pod, Process, Testbed, probe};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// The shortest that a node takes, in seconds.
const TTL: u64 = 5;

const LIMIT: Duration = Duration::from_secs(30);

/// Nodes on hosts 0, 1 and 2, and members of etcd on hosts from 3 on.
struct World {
    testbed: Testbed,
    folder: TempDir,
    members: Vec<Option<Process>>,
    nodes: Vec<Option<Process>>,
    ttl: u64,
}

const NODES: usize = 3;

impl World {
    async fn with_members(members: usize) -> Self {
        let testbed = Testbed::new((NODES + members) as u32).await.unwrap();
        let mut world = Self {
            testbed,
            folder: tempfile::tempdir().unwrap(),
            members: (0..members).map(|_| None).collect(),
            nodes: (0..NODES).map(|_| None).collect(),
            ttl: TTL,
        };
        for member in 0..members {
            world.spawn_member(member);
        }
        for member in 0..members {
            world.member_serves(member).await;
        }
        world.etcdctl(&["put", "/coreos.com/network/config", NETWORK]).await;
        world
    }

    /// Two nodes that know each other, and a pod behind each.
    async fn with_two_nodes(&mut self) -> [Pod; 2] {
        self.start(0).await;
        self.start(1).await;
        let world = &*self;
        eventually(async || world.knows(0, 1).await && world.knows(1, 0).await).await;
        let mut pods = Vec::new();
        for n in 0..2 {
            pods.push(self.host(n).add_pod(self.subnet(n)).await.unwrap());
        }
        pods.try_into().unwrap_or_else(|_| unreachable!("two were made"))
    }

    fn host(&self, n: usize) -> &Host {
        self.testbed.host(n)
    }

    fn client_url(&self, member: usize) -> String {
        format!("http://{}:2379", self.host(NODES + member).ip())
    }

    fn client_urls(&self) -> String {
        let urls: Vec<_> = (0..self.members.len()).map(|member| self.client_url(member)).collect();
        urls.join(",")
    }

    fn spawn_member(&mut self, member: usize) {
        let peer_url = |n: usize| format!("http://{}:2380", self.host(NODES + n).ip());
        let all: Vec<_> =
            (0..self.members.len()).map(|n| format!("m{n}={}", peer_url(n))).collect();
        let (clients, peers) = (self.client_url(member), peer_url(member));
        let mut command = Command::new("etcd");
        command.arg("--name").arg(format!("m{member}"));
        command.arg("--data-dir").arg(self.folder.path().join(format!("etcd{member}")));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &all.join(",")]);
        // Short, so that also what a lost leader means is soon over.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        let etcd = self.host(NODES + member).spawn(command);
        self.members[member] = Some(etcd.expect("etcd: apt-get install etcd-server"));
    }

    async fn member_serves(&mut self, member: usize) {
        let etcd = self.members[member].as_mut().expect("it was started");
        let serves = |line: &str| line.contains("serving insecure client requests");
        etcd.line(LIMIT, serves).await.unwrap();
    }

    async fn kill_member(&mut self, member: usize) {
        let mut etcd = self.members[member].take().expect("it was started");
        etcd.kill().unwrap();
        etcd.wait().await.unwrap();
    }

    async fn start_member(&mut self, member: usize) {
        self.spawn_member(member);
        self.member_serves(member).await;
    }

    /// What etcd's own client says, asked on host 2.
    async fn etcdctl(&self, args: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.client_urls()]).args(args);
        let mut process =
            self.host(2).spawn(command).expect("etcdctl: apt-get install etcd-client");
        let status = process.wait().await.unwrap();
        let output = process.output().join("\n");
        assert!(status.success(), "etcdctl {args:?}: {output}");
        output
    }

    fn subnet_file(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("{n}.env"))
    }

    fn command(&self, n: usize) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
        command.args(["--etcd-endpoints", &self.client_urls(), "--iface=eth0"]);
        command.arg("--lease-ttl").arg(self.ttl.to_string());
        command.arg("--subnet-file").arg(self.subnet_file(n));
        command.arg("--state-dir").arg(self.folder.path().join(format!("state{n}")));
        command.stdin(Stdio::null());
        command
    }

    fn spawn(&mut self, n: usize) {
        self.nodes[n] = Some(self.host(n).spawn(self.command(n)).unwrap());
    }

    async fn start(&mut self, n: usize) {
        self.spawn(n);
        self.says(n, " ready subnet=").await;
    }

    async fn says(&mut self, n: usize, text: &str) -> String {
        let node = self.nodes[n].as_mut().expect("it was started");
        node.line(LIMIT, |line| line.contains(text)).await.unwrap()
    }

    async fn kill(&mut self, n: usize) {
        let mut node = self.nodes[n].take().expect("it was started");
        node.kill().unwrap();
        node.wait().await.unwrap();
    }

    fn subnet(&self, n: usize) -> Blocks {
        let env = fs::read_to_string(self.subnet_file(n)).unwrap();
        let block = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
        block.unwrap().parse().unwrap()
    }

    fn key(&self, n: usize) -> String {
        let block = self.subnet(n).ipv4().unwrap();
        format!("/coreos.com/network/subnets/{}-{}", block.network(), block.prefix())
    }

    async fn knows(&self, n: usize, peer: usize) -> bool {
        let block = self.subnet(peer).ipv4().unwrap();
        let route = format!("{}/{}", block.network(), block.prefix());
        self.host(n).snapshot().await.unwrap().to_string().contains(&route)
    }

    /// Whether node 0 has no route for the lease at a key any more.
    async fn has_forgotten(&self, key: &str) -> bool {
        let block = key.rsplit('/').next().unwrap().replace('-', "/");
        !self.host(0).snapshot().await.unwrap().to_string().contains(&block)
    }

    /// The value and the lease of a key; `None` if there is no such key.
    async fn stored(&self, key: &str) -> Option<(String, String)> {
        let output = self.etcdctl(&["get", key, "--write-out", "fields"]).await;
        let field = |name: &str| {
            let mut lines = output.lines();
            lines.find_map(|line| {
                Some(line.strip_prefix(name)?.trim_start_matches([' ', ':']).into())
            })
        };
        Some((field("\"Value\"")?, field("\"Lease\"")?))
    }
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, wait).await.expect("within half a minute");
}

/// Packets in both directions, twenty a second each.
struct Traffic([probe::Stream; 2]);

impl Traffic {
    fn between(pods: &[Pod; 2]) -> Self {
        let stream = |from: &Pod, to: IpAddr| probe::stream(from, to, 20).unwrap();
        Self([stream(&pods[0], pods[1].ip()), stream(&pods[1], pods[0].ip())])
    }

    /// Ends it, and says how much of it was lost.
    async fn lost(self, fault: &str) -> u64 {
        let mut lost = 0;
        for stream in self.0 {
            stream.flowing().await;
            let report = stream.stop().await;
            println!("{fault}: {report}");
            lost += report.lost as u64;
        }
        lost
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn etcd_is_killed_for_three_lives_of_a_lease() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    world.kill_member(0).await;
    let killed = Instant::now();
    world.says(0, "cannot trust the lease").await;
    println!("killed: the node doubted its lease after {:?}", killed.elapsed());
    sleep(Duration::from_secs(3 * TTL).saturating_sub(killed.elapsed())).await;
    world.start_member(0).await;
    let back = Instant::now();
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
    println!("killed: both knew a node that joined then {:?} after etcd was back", back.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert!(!subnets.contains(&world.subnet(2)));
    assert_eq!(traffic.lost("killed").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_leader_moves_and_then_dies() {
    let mut world = World::with_members(3).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    let status = world.etcdctl(&["endpoint", "status"]).await;
    // ENDPOINT, ID, version, size, leader, ...
    let members: Vec<(String, bool)> = status
        .lines()
        .map(|line| line.split(", ").map(str::to_owned).collect::<Vec<_>>())
        .map(|columns| (columns[1].clone(), columns[4] == "true"))
        .collect();
    let leader = members.iter().position(|(_, leads)| *leads).expect("there is a leader");
    let next = (leader + 1) % 3;
    let moved = Instant::now();
    let endpoint = world.client_url(leader);
    world.etcdctl(&["--endpoints", &endpoint, "move-leader", &members[next].0]).await;
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
    println!("leader moved: both knew a node that joined {:?} after that", moved.elapsed());

    world.kill_member(next).await;
    let died = Instant::now();
    world.kill(2).await;
    let key = world.key(2);
    eventually(async || world.has_forgotten(&key).await).await;
    println!("leader died: the lease of a dead node was over {:?} after that", died.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert_eq!(traffic.lost("leader moved").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_is_cut_off_from_etcd_during_a_compaction() {
    let mut world = World::with_members(1).await;
    world.ttl = 60;
    let pods = world.with_two_nodes().await;
    let traffic = Traffic::between(&pods);
    // The node's packets arrive, and nothing comes back: what it sends is not refused.
    let IpAddr::V4(node) = world.host(0).ip() else { unreachable!("hosts have IPv4") };
    ip(world.host(NODES), &["route", "add", "blackhole", &node.to_string()]).await;
    world.start(2).await;
    let this = &world;
    eventually(async || this.knows(1, 2).await).await;
    assert!(!world.knows(0, 2).await, "it is cut off");
    world.says(0, "cannot watch leases").await;
    for n in 0..20 {
        world.etcdctl(&["put", "/elsewhere", &n.to_string()]).await;
    }
    let header = world.etcdctl(&["get", "/elsewhere", "--write-out", "fields"]).await;
    let revision = header.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    world.etcdctl(&["compaction", revision]).await;
    ip(world.host(NODES), &["route", "del", "blackhole", &node.to_string()]).await;
    let healed = Instant::now();
    let this = &world;
    eventually(async || this.knows(0, 2).await).await;
    println!(
        "compaction: it knew who had joined meanwhile {:?} after it was back",
        healed.elapsed()
    );
    assert_eq!(traffic.lost("compaction").await, 0);
}

/// Runs ip(8).
pub(crate) async fn ip(host: &Host, args: &[&str]) {
    let mut command = Command::new("ip");
    command.args(args);
    host.run(command).await.unwrap();
}

/// Takes a node's lease away, and returns after how long it has it again.
async fn until_held_again(world: &mut World, args: &[&str]) -> Duration {
    let (key, subnet) = (world.key(0), world.subnet(0));
    let (value, lease) = world.stored(&key).await.expect("it holds a lease");
    let taken = Instant::now();
    world.etcdctl(args).await;
    world.says(0, "lease lost").await;
    let mut held = None;
    let this = &*world;
    eventually(async || {
        held = this.stored(&key).await.filter(|(_, new)| *new != lease);
        held.is_some()
    })
    .await;
    assert_eq!((held.unwrap().0, world.subnet(0)), (value, subnet));
    taken.elapsed()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_lease_is_revoked_and_a_key_is_deleted() {
    for fault in ["revoked", "deleted"] {
        let mut world = World::with_members(1).await;
        world.ttl = 60;
        let pods = world.with_two_nodes().await;
        let traffic = Traffic::between(&pods);
        traffic.0[0].flowing().await;
        let key = world.key(0);
        let (_, lease) = world.stored(&key).await.unwrap();
        let lease = format!("{:x}", lease.parse::<i64>().unwrap());
        let args: &[&str] =
            if fault == "revoked" { &["lease", "revoke", &lease] } else { &["del", &key] };
        let again = until_held_again(&mut world, args).await;
        println!("{fault}: it had its lease again after {again:?}, with etcdctl's own time");
        assert_eq!(traffic.lost(fault).await, 0);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_key_is_replaced_by_somebody_else_and_by_garbage() {
    let stranger = r#"{"PublicIP":"192.0.2.250","PublicIPv6":null,"BackendType":"host-gw"}"#;
    for (fault, value) in [("somebody else", stranger), ("garbage", "{\"PublicIP\":")] {
        let mut world = World::with_members(1).await;
        world.ttl = 60;
        let pods = world.with_two_nodes().await;
        world.start(2).await;
        let traffic = Traffic::between(&pods);
        let (key, subnet) = (world.key(2), world.subnet(2));
        let replaced = Instant::now();
        world.etcdctl(&["put", &key, value]).await;
        let this = &world;
        eventually(async || this.subnet(2) != subnet).await;
        println!("{fault}: it had another subnet after {:?}", replaced.elapsed());
        eventually(async || this.knows(0, 2).await && this.knows(1, 2).await).await;
        println!("{fault}: its peers knew that after {:?}", replaced.elapsed());
        let (now, _) = world.stored(&key).await.expect("it is not deleted");
        assert_eq!(now, format!("{value:?}"), "it is not overwritten");
        assert_eq!(traffic.lost(fault).await, 0);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_short_life_is_renewed_in_time() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, key) = (Traffic::between(&pods), world.key(0));
    let before = world.stored(&key).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4 * TTL) {
        assert_eq!(world.stored(&key).await, before, "the lease is the same all the time");
        sleep(Duration::from_millis(500)).await;
    }
    println!("short life: a lease of {TTL} s was held for {:?}", start.elapsed());
    assert_eq!(traffic.lost("short life").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_starts_while_etcd_is_down() {
    let mut world = World::with_members(1).await;
    let pods = world.with_two_nodes().await;
    let (traffic, subnets) = (Traffic::between(&pods), [world.subnet(0), world.subnet(1)]);
    world.kill_member(0).await;
    world.kill(0).await;
    let before = fs::read_to_string(world.subnet_file(0)).unwrap();
    world.spawn(0);
    world.says(0, "cannot read the network config, retrying").await;
    sleep(Duration::from_secs(2 * TTL)).await;
    let output = world.nodes[0].as_ref().unwrap().output().join("\n");
    assert!(!output.contains("ready"), "it says nothing that it does not know: {output}");
    assert_eq!(fs::read_to_string(world.subnet_file(0)).unwrap(), before);
    world.start_member(0).await;
    let back = Instant::now();
    world.says(0, " ready subnet=").await;
    println!("down at start: it was ready {:?} after etcd was back", back.elapsed());
    assert_eq!([world.subnet(0), world.subnet(1)], subnets);
    assert_eq!(traffic.lost("down at start").await, 0);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_machine_is_cloned_with_its_name() {
    let mut world = World::with_members(1).await;
    world.ttl = 60;
    let pods = world.with_two_nodes().await;
    let traffic = Traffic::between(&pods);
    let state = |n: usize| world.folder.path().join(format!("state{n}"));
    fs::create_dir(state(2)).unwrap();
    fs::copy(state(0).join("node-id"), state(2).join("node-id")).unwrap();
    let started = Instant::now();
    world.spawn(2);
    let said = world.says(2, "give one of them another name").await;
    println!("cloned: told after {:?}: {said}", started.elapsed());
    assert!(said.contains(&world.host(0).ip().to_string()));
    assert!(!world.subnet_file(2).exists());
    assert_eq!(traffic.lost("cloned").await, 0);
    world.kill(2).await;
    fs::remove_file(world.folder.path().join("state2/node-id")).unwrap();
    world.start(2).await;
}
