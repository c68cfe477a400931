//! A node with a pod, a peer with a pod, and a machine outside of the network that routes to both through the node.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use flannel_core::NetworkConfig;
use flannel_firewall::{Firewall, FirewallOptions, FirewallReport, Masquerade, ModeChoice, Scope};
use flannel_netlink::Namespace;
use flannel_testbed::{Blocks, Host, Pod, Testbed};
use tempfile::TempDir;
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

/// By what rules are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    IptablesLegacy,
    IptablesNft,
    Nftables,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::IptablesLegacy, Self::IptablesNft, Self::Nftables];

    /// What iptables is on such a machine.
    fn flavour(self) -> &'static str {
        if self == Self::IptablesLegacy { "legacy" } else { "nft" }
    }
}

pub(crate) struct World {
    pub(crate) testbed: Testbed,
    pub(crate) pod: Pod,
    pub(crate) peer_pod: Pod,
    pub(crate) mode: Mode,
    tools: TempDir,
    folders: [PathBuf; 1],
}

pub(crate) const OWN: &str = "10.244.1.0/24,fd00:10:244:1::/64";
const PEER: &str = "10.244.2.0/24,fd00:10:244:2::/64";

impl World {
    pub(crate) async fn new(mode: Mode) -> Self {
        let testbed = Testbed::new(3).await.unwrap();
        let (node, peer, outside) = (testbed.host(0), testbed.host(1), testbed.host(2));
        let [own, theirs]: [Blocks; 2] = [OWN, PEER].map(|text| text.parse().unwrap());
        let pod = node.add_pod(own).await.unwrap();
        let peer_pod = peer.add_pod(theirs).await.unwrap();
        node.add_route(theirs, peer).await.unwrap();
        peer.add_route(own, node).await.unwrap();
        outside.add_route(own, node).await.unwrap();
        outside.add_route(theirs, node).await.unwrap();
        // A router tells who could do without it, and then packets would not pass the node.
        let quiet = "for f in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $f; done";
        let tools = tools(mode.flavour());
        let folders = [tools.path().into()];
        let world = Self { testbed, pod, peer_pod, mode, tools, folders };
        world.run(quiet).await;
        world
    }

    /// From now on the machine has other tools, and rules are kept by something else.
    pub(crate) fn switch_to(&mut self, mode: Mode) {
        self.mode = mode;
        self.tools = tools(mode.flavour());
        self.folders = [self.tools.path().into()];
    }

    pub(crate) fn node(&self) -> &Host {
        self.testbed.host(0)
    }

    pub(crate) fn outside(&self) -> &Host {
        self.testbed.host(2)
    }

    pub(crate) fn options(&self) -> FirewallOptions {
        FirewallOptions {
            mode: match self.mode {
                Mode::Nftables => ModeChoice::Nftables,
                _ => ModeChoice::Iptables,
            },
            masquerade: Masquerade::RandomPorts,
            check_every: Duration::from_millis(300),
            tool_folders: self.tool_folders().to_vec(),
            ..FirewallOptions::default()
        }
    }

    /// Where this world's iptables is.
    pub(crate) fn tool_folders(&self) -> &[PathBuf] {
        &self.folders
    }

    pub(crate) async fn open(&self) -> Firewall {
        Firewall::open(self.node().namespace(), self.options()).await.unwrap()
    }

    /// A firewall that has done its first sync.
    pub(crate) async fn start(&self) -> Firewall {
        let mut firewall = self.open().await;
        let report = firewall.sync(&scope()).await;
        assert_eq!(report.faults, [], "{:?}", self.mode);
        assert!(report.added > 0);
        firewall
    }

    /// Runs a line of shell on the node, with the iptables of this world, and returns what it prints.
    pub(crate) async fn run(&self, line: &str) -> String {
        let (success, output) = self.try_run(line).await;
        assert!(success, "{line}: {output}");
        output
    }

    pub(crate) async fn try_run(&self, line: &str) -> (bool, String) {
        #[expect(clippy::disallowed_methods, reason = "what others do is done by their programs")]
        let mut command = Command::new("sh");
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.tools.path().display());
        command.args(["-c", line]).env("PATH", path);
        let mut process = self.node().spawn(command).unwrap();
        let status = process.wait().await.unwrap();
        (status.success(), process.output().join("\n"))
    }

    /// How often iptables was run.
    pub(crate) fn runs(&self) -> usize {
        self.run_names().len()
    }

    /// Which programs of iptables were run, in their order.
    pub(crate) fn run_names(&self) -> Vec<String> {
        let log = fs::read_to_string(self.tools.path().join("log")).unwrap_or_default();
        log.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    /// From now on a program of this world is a script.
    pub(crate) fn replace_tool(&self, name: &str, script: &str) {
        let file = self.tools.path().join(name);
        fs::remove_file(&file).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// From now on a program of this world is iptables of this flavour again.
    pub(crate) fn restore_tool(&self, name: &str, flavour: &str) {
        let file = self.tools.path().join(name);
        fs::remove_file(&file).unwrap();
        symlink(self.tools.path().join(format!("xtables-{flavour}-multi")), file).unwrap();
    }

    /// Our rules, as the tools of others show them, without counters.
    pub(crate) async fn ours(&self) -> String {
        let line = match self.mode {
            Mode::Nftables => "nft list table ip flannel-ipv4; nft list table ip6 flannel-ipv6",
            _ => "iptables-save; ip6tables-save",
        };
        let (_, text) = self.try_run(line).await;
        let ours = |line: &&str| {
            self.mode == Mode::Nftables
                || ["FLANNEL", "flanneld"].iter().any(|word| line.contains(word))
        };
        text.lines().filter(ours).collect::<Vec<_>>().join("\n")
    }

    /// All rules that there are, in whatever keeps them, without what counts and what only says when.
    pub(crate) async fn everything(&self) -> String {
        let lines = "(nft list ruleset; iptables-legacy-save; ip6tables-legacy-save) 2>/dev/null";
        let text = self.run(&format!("PATH=/usr/sbin:/usr/bin:/bin XTABLES_LOCKFILE={}/lock; export XTABLES_LOCKFILE; {lines}", self.tools.path().display())).await;
        // What belongs to a socket is no leftover.
        let mut guard = false;
        let text = text.lines().filter(|line| {
            let begins = line.starts_with("table ") && line.contains("-guard-");
            let inside = guard || begins;
            guard = inside && *line != "}";
            !inside
        });
        let settled = text.filter(|line| !line.starts_with('#')).map(|line| {
            let line = line.split(" [").next().unwrap_or(line);
            match line.split_once("packets ") {
                Some((before, rest)) => {
                    let after: Vec<_> = rest.splitn(4, ' ').skip(3).collect();
                    format!("{before}{}", after.join(""))
                }
                None => line.to_owned(),
            }
        });
        settled.collect::<Vec<_>>().join("\n")
    }

    /// Does what a node does, until `done` or until its time is over.
    pub(crate) async fn repair(
        &self,
        firewall: &mut Firewall,
        mut done: impl AsyncFnMut() -> bool,
    ) -> bool {
        let done = async {
            while !done().await {
                sleep(POLL).await;
            }
        };
        let keep = async {
            loop {
                firewall.drifted().await.unwrap();
                firewall.sync(&scope()).await;
            }
        };
        let work = async {
            tokio::select! {
                () = done => {}
                () = keep => {}
            }
        };
        timeout(REPAIR, work).await.is_ok()
    }

    /// The source that somebody at `to` sees of a packet from `from`.
    pub(crate) async fn source_seen(
        &self,
        from: (&Namespace, IpAddr),
        to: (&Namespace, IpAddr),
    ) -> Option<IpAddr> {
        let receiver = socket(to.0, to.1).await;
        let sender = socket(from.0, from.1).await;
        let target = receiver.local_addr().unwrap();
        receive(&receiver, &sender, target).await
    }

    /// The node's own addresses.
    pub(crate) fn node_ip(&self, like: IpAddr) -> IpAddr {
        self.node().endpoint().ips().find(|ip| ip.is_ipv4() == like.is_ipv4()).unwrap()
    }

    /// Whether a packet from our pod to the outside, in each family, has the node's address.
    pub(crate) async fn masquerades(&self) -> bool {
        for (pod, outside) in self.pod.endpoint().ips().zip(self.outside().endpoint().ips()) {
            let from = (self.pod.namespace(), pod);
            let seen = self.source_seen(from, (self.outside().namespace(), outside)).await;
            if seen != Some(self.node_ip(pod)) {
                return false;
            }
        }
        true
    }
}

pub(crate) async fn receive(
    receiver: &UdpSocket,
    sender: &UdpSocket,
    target: SocketAddr,
) -> Option<IpAddr> {
    let mut buffer = [0; 8];
    for _ in 0..3 {
        // The first of all may find no neighbour yet, and that is an error of the second.
        let _ = sender.send_to(b"x", target).await;
        if let Ok(Ok((_, from))) = timeout(ANSWER, receiver.recv_from(&mut buffer)).await {
            return Some(from.ip());
        }
    }
    None
}

pub(crate) async fn socket(namespace: &Namespace, ip: IpAddr) -> UdpSocket {
    let bound = namespace.run(|| std::net::UdpSocket::bind((ip, 0))).unwrap().unwrap();
    bound.set_nonblocking(true).unwrap();
    UdpSocket::from_std(bound).unwrap()
}

pub(crate) fn config() -> NetworkConfig {
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48"}"#
        .parse()
        .unwrap()
}

pub(crate) fn scope() -> Scope {
    Scope::new(&config(), &"10.244.1.0-24&fd00:10:244:1::-64".parse().unwrap())
}

pub(crate) fn quiet(report: &FirewallReport) -> bool {
    report.writes() == 0 && report.read == 0 && report.is_exact()
}

/// iptables of one flavour, under the names that people use. As installed, one program is behind all names; it notes its runs.
fn tools(flavour: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let multi = folder.path().join(format!("xtables-{flavour}-multi"));
    let script = format!(
        "#!/bin/sh\nname=${{0##*/}} base=${{0##*/}}; base=${{base%%-*}}; rest=${{name#$base}}\n\
         case $rest in -nft*|-legacy*) ;; *) rest=-{flavour}$rest;; esac\n\
         echo \"$name $*\" >> {path}/log\nXTABLES_LOCKFILE={path}/lock exec /usr/sbin/$base$rest \"$@\"\n"
    );
    fs::write(&multi, &script).unwrap();
    fs::set_permissions(&multi, fs::Permissions::from_mode(0o755)).unwrap();
    let others = folder.path().join(if flavour == "nft" {
        "xtables-legacy-multi"
    } else {
        "xtables-nft-multi"
    });
    fs::copy(&multi, &others).unwrap();
    for family in ["iptables", "ip6tables"] {
        for action in ["", "-save", "-restore"] {
            for (variant, kind) in [("", flavour), ("-legacy", "legacy"), ("-nft", "nft")] {
                let link = folder.path().join(format!("{family}{variant}{action}"));
                symlink(folder.path().join(format!("xtables-{kind}-multi")), link).unwrap();
            }
        }
    }
    folder
}

const POLL: Duration = Duration::from_millis(20);
const ANSWER: Duration = Duration::from_millis(300);
/// What a repair may take on a machine that does much else. It takes a fraction of a second on a quiet one.
const REPAIR: Duration = Duration::from_secs(5);
