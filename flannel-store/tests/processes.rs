//! A folder shared by real processes: races and kills.
//!
//! The children are this test program again, running the one ignored test.

#![expect(clippy::disallowed_methods, reason = "these tests are about processes")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use flannel_core::{LeaseAttrs, NetworkConfig, Store, SubnetLease};
use flannel_store::{FileStore, LeaseOptions};
use flannel_testbed::soon;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

const ROLE: &str = "FLANNEL_STORE_TEST_ROLE";
const FOLDER: &str = "FLANNEL_STORE_TEST_FOLDER";
const NODE: &str = "FLANNEL_STORE_TEST_NODE";

/// Marks a child's lines among those of the test harness.
const MARK: &str = "child says ";

struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(role: &str, folder: &Path, node: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_child", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(FOLDER, folder)
            .env(NODE, node)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The next thing that the child says; `None` if it has ended.
    fn says(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The harness writes its own words without a line break.
            if let Some((_, said)) = line.split_once(MARK) {
                return Some(said.trim().into());
            }
        }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the other side of the other tests, which start it"]
fn a_child() {
    let role = env::var(ROLE).expect("only other tests run this one");
    let (folder, node) = (env::var(FOLDER).unwrap(), env::var(NODE).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match role.as_str() {
        "acquire" => runtime.block_on(async {
            let store = open(folder.as_ref(), &node).await;
            say("ready");
            heard();
            let lease = store.acquire(&at(number(&node))).await.unwrap();
            say(lease.lease().subnet);
        }),
        "hold the lock" => {
            let lock = fs::File::create(Path::new(&folder).join("lock")).unwrap();
            lock.lock().unwrap();
            fs::write(Path::new(&folder).join(".write"), "half a le").unwrap();
            say("locked");
            heard();
        }
        "publish at once" => runtime.block_on(async {
            let store = open(folder.as_ref(), &node).await;
            let mut lease = store.acquire(&at(1)).await.unwrap();
            say("ready");
            for n in 0u8.. {
                lease.publish(&at(n)).await.unwrap();
                say(n);
            }
        }),
        other => panic!("unknown role {other}"),
    }
}

fn say(what: impl std::fmt::Display) {
    println!("{MARK}{what}");
}

/// What the parent tells; `None` if there is no parent any more.
fn heard() -> Option<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    (!line.is_empty()).then(|| line.trim().into())
}

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last.max(1)].into()), ..LeaseAttrs::default() }
}

async fn folder(config: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    FileStore::init(folder.path(), &config.parse().unwrap()).await.unwrap();
    folder
}

async fn open(folder: &Path, node: &str) -> FileStore {
    FileStore::open(folder, node.parse().unwrap(), LeaseOptions::default()).await.unwrap()
}

async fn acquire(folder: &Path, node: &str) -> Box<dyn SubnetLease> {
    let store = open(folder, node).await;
    soon(store.acquire(&at(number(node)))).await.unwrap()
}

/// The last byte of a node's address: each has another, because an address belongs to one node.
fn number(node: &str) -> u8 {
    node[1..].parse::<u8>().unwrap() + 1
}

#[tokio::test]
async fn twenty_processes_that_race_get_twenty_subnets() {
    let config = r#"{"Network":"10.3.0.0/24","SubnetLen":29,"SubnetMax":"10.3.0.160"}"#;
    let folder = folder(config).await;
    let start = |n| Process::start("acquire", folder.path(), &format!("n{n}"));
    let mut processes: Vec<_> = (0..20).map(start).collect();
    for process in &mut processes {
        assert_eq!(process.says().as_deref(), Some("ready"));
    }
    let begin = Instant::now();
    for process in &mut processes {
        process.tell("go");
    }
    let subnets: BTreeSet<_> = processes.iter_mut().map(|p| p.says().expect("a subnet")).collect();
    println!("20 processes have their leases after {:?}", begin.elapsed());
    assert_eq!(subnets.len(), 20, "{subnets:?}");
    let config: NetworkConfig = config.parse().unwrap();
    assert!(subnets.iter().all(|subnet| config.admits(&subnet.parse().unwrap())));
    assert_eq!(fs::read_dir(folder.path().join("subnets")).unwrap().count(), 20);
}

#[tokio::test]
async fn a_process_killed_with_the_lock_blocks_nobody() {
    let folder = folder(r#"{"Network":"10.3.0.0/16"}"#).await;
    let store = open(folder.path(), "n1").await;
    let mut process = Process::start("hold the lock", folder.path(), "n2");
    assert_eq!(process.says().as_deref(), Some("locked"));
    let attrs = at(1);
    let mut waiting = store.acquire(&attrs);
    assert!(
        timeout(Duration::from_millis(300), &mut waiting).await.is_err(),
        "the lock was ignored"
    );
    process.child.kill().unwrap();
    let killed = Instant::now();
    let lease = soon(waiting).await.unwrap();
    println!("acquired {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    // What the dead one was writing is nowhere.
    let subnets = fs::read_dir(folder.path().join("subnets")).unwrap().count();
    assert_eq!(
        (lease.lease().subnet, subnets),
        (acquire(folder.path(), "n1").await.lease().subnet, 1)
    );
}

#[tokio::test]
async fn a_process_killed_at_any_time_leaves_a_whole_store() {
    let folder = folder(r#"{"Network":"10.3.0.0/16"}"#).await;
    let mut subnet = None;
    for round in 0..30u32 {
        let mut process = Process::start("publish at once", folder.path(), "n1");
        assert_eq!(process.says().as_deref(), Some("ready"));
        // Somewhere within the first few writes, each of which takes some hundred microseconds.
        let until = Instant::now() + Duration::from_micros(u64::from(round) * 137 % 2000);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        let store = open(folder.path(), "n1").await;
        let previous = store.previous().await.unwrap().expect("the lease is there and whole");
        assert_eq!(*subnet.get_or_insert(previous.subnet), previous.subnet);
        assert_eq!(store.acquire(&at(1)).await.unwrap().lease().subnet, previous.subnet);
        let files = fs::read_dir(folder.path().join("subnets")).unwrap().count();
        assert_eq!((files, store.stats().skipped), (1, 0), "round {round}");
    }
}
