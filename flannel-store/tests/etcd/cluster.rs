//! Real etcd servers on loopback, and etcd's own client to look at them and to meddle.

use std::{
    cell::Cell,
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use flannel_store::{EtcdConfig, EtcdStore, LeaseOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::certificates::Authority;

/// Members that are killed when this is dropped.
pub(crate) struct Cluster {
    pub(crate) folder: TempDir,
    pub(crate) members: Vec<Member>,
    security: Security,
}

pub(crate) struct Member {
    pub(crate) ip: String,
    child: Option<Child>,
    hangs: Cell<bool>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Security {
    /// http, and no users.
    None,
    /// https with a certificate of the server alone, and users.
    Passwords,
    /// https, and clients show a certificate too.
    Certificates,
}

/// What `etcdctl` says of a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) lease: i64,
    pub(crate) revision: u64,
}

pub(crate) const PREFIX: &str = "/coreos.com/network";

impl Cluster {
    pub(crate) async fn start(members: usize, security: Security) -> Self {
        // Loopback is a /8: with addresses of its own each cluster has all ports.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let [.., p, q] = std::process::id().to_be_bytes();
        // Four addresses for each of sixty clusters, and the next block for the next sixty.
        let (block, host) = (64 + (u16::from(p) + n / 60) % 128, n % 60 * 4 + 1);
        let ip = |member: usize| format!("127.{block}.{q}.{}", usize::from(host) + member);
        let members = (0..members)
            .map(|member| Member { ip: ip(member), child: None, hangs: Cell::new(false) })
            .collect();
        let mut cluster = Self { folder: tempfile::tempdir().unwrap(), members, security };
        if security != Security::None {
            cluster.write_certificates();
        }
        for member in 0..cluster.members.len() {
            cluster.start_member(member);
        }
        cluster.is_healthy().await;
        if security == Security::Passwords {
            cluster.enable_users();
        }
        cluster
    }

    /// Signs new certificates, in place of any that there are.
    pub(crate) fn write_certificates(&self) -> Authority {
        let authority = Authority::new("test authority");
        let ips: Vec<&str> = self.members.iter().map(|member| &*member.ip).collect();
        authority.write(&self.path("ca.pem"));
        authority.sign("server", &ips).write(&self.path("server.pem"), &self.path("server.key"));
        authority.sign("flannel", &[]).write(&self.path("client.pem"), &self.path("client.key"));
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[expect(clippy::disallowed_methods, reason = "the server under test is a process")]
    pub(crate) fn start_member(&mut self, member: usize) {
        let url = |member: &Member| format!("http://{}:2380", member.ip);
        let mut initial = String::new();
        for (n, member) in self.members.iter().enumerate() {
            write!(initial, "m{n}={},", url(member)).unwrap();
        }
        let (ip, peer) = (&self.members[member].ip, url(&self.members[member]));
        let client = self.endpoint(member);
        let log =
            fs::File::options().create(true).append(true).open(self.path(&format!("log{member}")));
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{member}"), "--data-dir"])
            .arg(self.path(&format!("data{member}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &format!("http://{ip}:2381")])
            .args(["--initial-cluster", initial.trim_end_matches(',')])
            // The shortest TTL that etcd grants is one and a half elections.
            .args(["--heartbeat-interval", "60", "--election-timeout", "600", "--bcrypt-cost", "4"])
            .stdout(Stdio::null())
            .stderr(log.unwrap());
        if self.security != Security::None {
            command.arg("--cert-file").arg(self.path("server.pem"));
            command.arg("--key-file").arg(self.path("server.key"));
        }
        if self.security == Security::Certificates {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.path("ca.pem"));
        }
        self.members[member].child = Some(command.spawn().expect("etcd is installed"));
    }

    /// Waits until all members serve.
    pub(crate) async fn is_healthy(&self) {
        for member in &self.members {
            soon("etcd is healthy", || http_get(&member.ip, "/health").contains(r#""true""#)).await;
        }
    }

    /// Ends a member with SIGKILL.
    pub(crate) fn kill(&mut self, member: usize) {
        let mut child = self.members[member].child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Makes a member hang.
    pub(crate) fn stop(&self, member: usize) {
        self.members[member].hangs.set(true);
        self.signal(member, Signal::STOP);
    }

    /// Ends what [`stop`](Self::stop) began.
    pub(crate) fn go_on(&self, member: usize) {
        self.members[member].hangs.set(false);
        self.signal(member, Signal::CONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        let child = self.members[member].child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    pub(crate) fn endpoint(&self, member: usize) -> String {
        let scheme = if self.security == Security::None { "http" } else { "https" };
        format!("{scheme}://{}:2379", self.members[member].ip)
    }

    /// How a node reaches all members.
    pub(crate) fn config(&self) -> EtcdConfig {
        let file = |name: &str, wanted: bool| wanted.then(|| self.path(name).into());
        let certificates = self.security == Security::Certificates;
        let passwords = self.security == Security::Passwords;
        EtcdConfig {
            ca: file("ca.pem", self.security != Security::None),
            cert: file("client.pem", certificates),
            endpoints: (0..self.members.len()).map(|member| self.endpoint(member)).collect(),
            key: file("client.key", certificates),
            password: passwords.then(|| "hunter2".into()),
            username: passwords.then(|| "flannel".into()),
            ..EtcdConfig::default()
        }
    }

    pub(crate) fn store(&self, node: &str) -> EtcdStore {
        self.store_with(node, LeaseOptions::default())
    }

    pub(crate) fn store_with(&self, node: &str, options: LeaseOptions) -> EtcdStore {
        EtcdStore::open(&self.config(), node.parse().unwrap(), options).unwrap()
    }

    /// Calls etcd's own client, as root.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        self.ctl_with(args, "")
    }

    /// The same with something to read.
    pub(crate) fn ctl_with(&self, args: &[&str], input: &str) -> String {
        let runs = |member: &usize| {
            let member = &self.members[*member];
            member.child.is_some() && !member.hangs.get()
        };
        let running = (0..self.members.len()).filter(runs);
        let endpoints: Vec<_> = running.map(|member| self.endpoint(member)).collect();
        self.ctl_at(&endpoints.join(","), args, input)
    }

    #[expect(clippy::disallowed_methods, reason = "an independent client to compare with")]
    fn ctl_at(&self, endpoints: &str, args: &[&str], input: &str) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", endpoints]);
        if self.security != Security::None {
            command.arg("--cacert").arg(self.path("ca.pem"));
        }
        if self.security == Security::Certificates {
            command.arg("--cert").arg(self.path("client.pem"));
            command.arg("--key").arg(self.path("client.key"));
        }
        if self.path("users").exists() {
            command.args(["--user", "root:root"]);
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl is installed");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn enable_users(&self) {
        self.ctl(&["user", "add", "root:root"]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        self.ctl(&["role", "add", "flannel"]);
        self.ctl(&["role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX]);
        self.ctl(&["user", "add", "flannel:hunter2"]);
        self.ctl(&["user", "grant-role", "flannel", "flannel"]);
        self.ctl(&["auth", "enable"]);
        fs::write(self.path("users"), "").unwrap();
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        match value {
            // etcdctl does not read what is empty.
            "" => self.ctl(&["put", key, ""]),
            value => self.ctl_with(&["put", key], value),
        };
    }

    /// Writes as flannel does: with an etcd lease, whatever is there.
    pub(crate) fn put_for(&self, key: &str, value: &str, ttl: u32) -> i64 {
        let said = self.ctl(&["lease", "grant", &ttl.to_string()]);
        let id = said.split(' ').nth(1).expect("lease ID granted with ...");
        self.ctl_with(&["put", &format!("--lease={id}"), key], value);
        i64::from_str_radix(id, 16).unwrap()
    }

    pub(crate) fn delete(&self, key: &str) {
        self.ctl(&["del", key]);
    }

    pub(crate) fn kvs(&self, prefix: &str) -> Vec<Kv> {
        let json = self.ctl(&["get", "--prefix", prefix, "-w", "json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        let text =
            |value: &Value| String::from_utf8(base64(value.as_str().unwrap_or_default())).unwrap();
        let kv = |kv: &Value| Kv {
            key: text(&kv["key"]),
            value: text(&kv["value"]),
            lease: kv["lease"].as_i64().unwrap_or_default(),
            revision: kv["mod_revision"].as_u64().unwrap(),
        };
        json["kvs"].as_array().map(|kvs| kvs.iter().map(kv).collect()).unwrap_or_default()
    }

    pub(crate) fn lease_key(subnet: impl std::fmt::Display) -> String {
        format!("{PREFIX}/subnets/{subnet}")
    }

    /// Makes another member the leader.
    pub(crate) fn move_leader(&self) {
        let status = |member: usize| {
            let endpoint = self.endpoint(member);
            let json = self.ctl_at(&endpoint, &["endpoint", "status", "-w", "json"], "");
            let json: Value = serde_json::from_str(&json).unwrap();
            let status = &json[0]["Status"];
            (endpoint, status["header"]["member_id"].clone(), status["leader"].clone())
        };
        let all: Vec<_> = (0..self.members.len()).map(status).collect();
        let (leader, ..) = all.iter().find(|(_, id, leader)| id == leader).expect("a leader");
        let (_, to, _) = all.iter().find(|(_, id, leader)| id != leader).expect("a follower");
        let to = format!("{:x}", to.as_u64().unwrap());
        self.ctl_at(leader, &["move-leader", &to], "");
    }

    /// Forgets all old revisions.
    pub(crate) fn compact(&self) {
        let json = self.ctl(&["get", "x", "-w", "json"]);
        let json: Value = serde_json::from_str(&json).unwrap();
        self.ctl(&["compaction", &json["header"]["revision"].to_string()]);
    }

    pub(crate) fn open_watches(&self) -> usize {
        let name = "etcd_debugging_mvcc_watcher_total ";
        let on = |member: &Member| {
            let metrics = http_get(&member.ip, "/metrics");
            let line = metrics.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
            line.expect("etcd counts its watches").parse::<usize>().unwrap()
        };
        self.members.iter().map(on).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits until `is_so`.
pub(crate) async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        sleep(Duration::from_millis(10)).await;
    }
}

/// The body of a page of a member's own; empty if it does not answer.
fn http_get(ip: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect((ip, 2381)) else {
        return String::new();
    };
    let mut answer = String::new();
    let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> = text
        .bytes()
        .filter_map(|c| DIGITS.iter().position(|digit| *digit == c))
        .map(|digit| u32::try_from(digit).unwrap())
        .collect();
    let bytes = digits.chunks(4).flat_map(|chunk| {
        let bits = chunk.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - chunk.len()));
        bits.to_be_bytes()[1..chunk.len()].to_vec()
    });
    bytes.collect()
}

/// Writes a file so that nobody sees half of it.
pub(crate) fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}
