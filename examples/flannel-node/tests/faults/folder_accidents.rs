//! A store's folder loses what it knew, or takes nothing, while nodes run.

#![expect(clippy::disallowed_methods, reason = "these tests are about programs")]

use std::{fs, process::Command, time::Duration};

use flannel_testbed::Process;
use tokio::time::sleep;

use super::trial::{Trial, dual, eventually};

/// The shortest that a node takes, in seconds.
const TTL: u64 = 5;

/// A disk of its own for the store, in the mount namespace of a process that sleeps.
struct Disk(Process);

impl Disk {
    async fn new(trial: &mut Trial) -> Self {
        let folder = trial.path("disk");
        fs::create_dir(&folder).unwrap();
        let mut holder = Command::new("unshare");
        let script =
            "mount -t tmpfs -o size=256k disk \"$0\" && echo mounted && exec sleep infinity";
        holder.args(["--mount", "sh", "-c", script]).arg(&folder);
        let mut holder = trial.host(0).spawn(holder).unwrap();
        holder.line(super::trial::LIMIT, |line| line == "mounted").await.unwrap();
        let disk = Self(holder);
        trial.runner = disk.inside().map(Into::into).to_vec();
        disk
    }

    fn inside(&self) -> [String; 3] {
        let pid = self.0.pid().expect("it sleeps");
        ["nsenter".into(), format!("--mount=/proc/{pid}/ns/mnt"), "--".into()]
    }

    async fn shell(&self, trial: &Trial, line: &str) -> String {
        let [program, mount, end] = self.inside();
        let mut command = Command::new(program);
        // Another mount namespace begins in its root.
        let line = format!("cd {} && {line}", trial.folder.path().display());
        command.args([&mount, &end, "sh", "-c", &line]);
        trial.host(0).run(command).await.unwrap()
    }
}

/// Nodes over a folder on a disk of its own.
struct World {
    trial: Trial,
    disk: Disk,
    network: String,
}

impl World {
    async fn new(nodes: u32, backend: &str) -> Self {
        let mut trial = Trial::new(nodes).await;
        let disk = Disk::new(&mut trial).await;
        let network = dual(backend);
        let store = format!("--store=file:{}", trial.path("disk/store").display());
        trial.options.extend([store.into(), format!("--lease-ttl={TTL}").into()]);
        let world = Self { trial, disk, network };
        world.make_folder().await;
        world
    }

    async fn shell(&self, line: &str) -> String {
        self.disk.shell(&self.trial, line).await
    }

    /// As an operator does it.
    async fn make_folder(&self) {
        let program = env!("CARGO_BIN_EXE_flannel-node");
        let set = format!(
            "mkdir -p disk/store && {program} config set --store file:disk/store '{}'",
            self.network
        );
        self.shell(&set).await;
    }

    /// Takes what is left of the disk.
    async fn fill(&self) {
        self.shell("cat /dev/zero >>disk/more 2>/dev/null || true").await;
    }

    /// Whether all nodes are as they were, with the leases they had.
    async fn recovers(&self) {
        let trial = &self.trial;
        let keys: Vec<_> = (0..trial.nodes.len()).map(|n| trial.key(n)).collect();
        eventually("all leases are in the folder again", async || {
            let stored = self.shell("ls disk/store/subnets 2>&1 || true").await;
            keys.iter().all(|key| stored.contains(key))
        })
        .await;
        trial.all_ready().await;
        trial.converged().await;
        // What is served for some seconds more is over by then.
        sleep(Duration::from_secs(7)).await;
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_folder_is_emptied_and_made_anew_and_its_disk_is_full_under_vxlan() {
    accidents("vxlan").await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_folder_is_emptied_and_made_anew_and_its_disk_is_full_under_host_gw() {
    accidents("host-gw").await;
}

async fn accidents(backend: &str) {
    let mut world = World::new(3, backend).await;
    for _ in 0..3 {
        world.trial.add().await;
    }
    let subnets = world.trial.subnets();
    let longer_than_a_lease = Duration::from_secs(2 * TTL);

    for (accident, line) in
        [("emptied", "rm -rf disk/store/* disk/store/.*[a-z]"), ("removed", "rm -r disk/store")]
    {
        let traffic = world.trial.traffic();
        world.shell(line).await;
        sleep(longer_than_a_lease).await;
        world.make_folder().await;
        world.recovers().await;
        assert_eq!(world.trial.subnets(), subnets);
        traffic.lost_nothing(accident).await;
    }

    let traffic = world.trial.traffic();
    world.fill().await;
    sleep(longer_than_a_lease).await;
    eventually("a node says that the disk is full", async || {
        // A node that was writing meanwhile has freed what it wrote before.
        world.fill().await;
        world.trial.nodes[0].output().iter().any(|line| line.contains("No space left on device"))
    })
    .await;
    world.shell("rm disk/more").await;
    world.recovers().await;
    assert_eq!(world.trial.subnets(), subnets);
    traffic.lost_nothing("disk full").await;
}
