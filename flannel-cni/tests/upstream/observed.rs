//! What can be seen after a call, as paths with values, without what is drawn by lot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use flannel_netlink::Namespace;
use serde_json::Value;

use crate::support::{Node, Pod, Reply, ip, program};

/// Everything that a call can change or answer: for each path, such as `host/link/cni0/mtu`, the value.
#[derive(Debug, Default)]
pub(crate) struct Observed(BTreeMap<String, String>);

/// A path with what is there on either side.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Difference {
    pub(crate) path: String,
    pub(crate) theirs: Option<String>,
    pub(crate) ours: Option<String>,
}

impl Observed {
    /// `with_kernel` says whether the plugin is one that touches links, addresses and rules at all.
    pub(crate) fn of(node: &Node, pod: &Pod, reply: &Reply, with_kernel: bool) -> Self {
        let mut seen = Self::default();
        seen.set("ok", reply.fine.to_string());
        let mut json = reply.json.clone();
        if !reply.fine {
            // Sentences are for people. That there is one is not.
            let described = json["msg"].as_str().is_some_and(|text| !text.is_empty());
            json = serde_json::json!({"code": json["code"], "described": described});
        }
        seen.json("answer", &json);
        seen.files(&node.folder.path().join("networks"), "files");
        let mut names = vec![(node.folder.path().display().to_string(), "FOLDER".to_owned())];
        if with_kernel {
            seen.namespace("host", &node.host, HOST_SETTINGS, &mut names);
            seen.rules(&node.host);
            seen.namespace(&pod.id, &pod.namespace, POD_SETTINGS, &mut names);
        }
        names.push((pod.netns().to_owned(), "NETNS".to_owned()));
        // A bridge may have that of a port.
        names.sort_by_key(|(_, name)| name.starts_with("MAC-of-host-") && !name.contains("VETH"));
        // Ethernet addresses, names of pairs, and paths become what they stand for.
        let replace = |text: String| {
            names.iter().fold(text, |text, (from, to)| text.replace(from.as_str(), to))
        };
        let seen = seen.0.into_iter();
        Self(seen.map(|(path, value)| (without_mac(&replace(path)), replace(value))).collect())
    }

    pub(crate) fn differences(&self, ours: &Self) -> Vec<Difference> {
        let paths: BTreeSet<&String> = self.0.keys().chain(ours.0.keys()).collect();
        let both = paths.into_iter().map(|path| Difference {
            path: path.clone(),
            theirs: self.0.get(path).cloned(),
            ours: ours.0.get(path).cloned(),
        });
        both.filter(|it| it.theirs != it.ours).collect()
    }

    fn set(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.0.insert(path.into(), value.into());
    }

    fn json(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, value)| self.json(&format!("{path}/{key}"), value));
            }
            Value::Array(list) => {
                let items = list.iter().enumerate();
                items.for_each(|(index, value)| self.json(&format!("{path}/{index}"), value));
            }
            Value::Null => {}
            value => self.set(path, value.to_string()),
        }
    }

    fn files(&mut self, folder: &Path, path: &str) {
        let Ok(listing) = fs::read_dir(folder) else { return };
        for file in listing {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            // What spares us from reading all files is nobody else's, and large.
            if name == ".flannel-cni" {
                continue;
            }
            let (at, path) = (file.path(), format!("{path}/{name}"));
            let metadata = fs::symlink_metadata(&at).unwrap();
            self.set(format!("{path}/mode"), format!("{:o}", metadata.permissions().mode()));
            if metadata.is_dir() {
                self.files(&at, &path);
            } else if metadata.is_file() {
                let content = fs::read(&at).unwrap();
                self.set(format!("{path}/content"), String::from_utf8_lossy(&content));
            }
        }
    }

    fn namespace(
        &mut self,
        side: &str,
        namespace: &Namespace,
        settings: &[&str],
        names: &mut Vec<(String, String)>,
    ) {
        let mut pairs = 0;
        for link in array(ip(namespace, "-d addr show")) {
            let (mut name, mac) = (text(&link["ifname"]), text(&link["address"]));
            if is_drawn(&name) {
                pairs += 1;
                names.push((name.clone(), format!("VETH{pairs}")));
                name = format!("VETH{pairs}");
            }
            // What somebody asked for is not drawn by lot.
            let drawn = !mac.starts_with(REQUESTED_MAC) && mac != NO_MAC;
            if link["link_type"] == "ether" && drawn {
                names.push((mac, format!("MAC-of-{side}-{name}")));
            }
            let path = format!("{side}/link/{name}");
            for key in ["mtu", "master", "address", "txqlen", "group", "promiscuity"] {
                self.json(&format!("{path}/{key}"), &link[key]);
            }
            // Whether there is a carrier is only known a moment later.
            let flags = array(link["flags"].clone()).into_iter();
            for flag in flags.filter(|it| it != "LOWER_UP" && it != "NO-CARRIER") {
                self.set(format!("{path}/flags/{}", text(&flag)), "");
            }
            let info = &link["linkinfo"];
            self.json(&format!("{path}/kind"), &info["info_kind"]);
            for key in ["hairpin", "isolated", "learning", "flood", "guard", "neigh_suppress"] {
                self.json(&format!("{path}/port/{key}"), &info["info_slave_data"][key]);
            }
            for key in ["vlan_filtering", "vlan_default_pvid", "stp_state", "mcast_snooping"] {
                self.json(&format!("{path}/bridge/{key}"), &info["info_data"][key]);
            }
            for address in array(link["addr_info"].clone()) {
                if address["scope"] != "link" {
                    let path = format!("{path}/addr/{}", text(&address["local"]));
                    self.json(&path, &address);
                }
            }
        }
        for family in ["-4", "-6"] {
            for mut route in array(ip(namespace, &format!("{family} route show table all"))) {
                let kind = route["type"].as_str().unwrap_or("unicast").to_owned();
                let dst = text(&route["dst"]);
                route["flags"] = Value::Null;
                if kind == "unicast" && !dst.starts_with("fe80") {
                    let via = route["gateway"].as_str().unwrap_or("link").to_owned();
                    self.json(&format!("{side}/route/{dst} via {via}"), &route);
                }
            }
        }
        let vlans = program(namespace, Path::new("bridge"), &["-j", "vlan", "show"]);
        for port in array(serde_json::from_str(&vlans).unwrap_or_default()) {
            for vlan in array(port["vlans"].clone()) {
                let (first, last) = (&vlan["vlan"], &vlan["vlanEnd"]);
                let path = format!("{side}/vlan/{}/{first}-{last}", text(&port["ifname"]));
                self.set(path, vlan["flags"].to_string());
            }
        }
        let values = namespace.run(|| {
            let read = |name: &&str| fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok();
            settings.iter().map(read).collect::<Vec<_>>()
        });
        for (name, value) in settings.iter().zip(values.unwrap()) {
            self.set(format!("{side}/sysctl/{name}"), value.unwrap_or_default().trim());
        }
    }

    fn rules(&mut self, host: &Namespace) {
        let ruleset = program(host, Path::new("nft"), &["-s", "list", "ruleset"]);
        let mut scope = Vec::new();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for line in ruleset.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            match line.strip_suffix('{') {
                Some(name) => scope.push(name.trim().to_owned()),
                None if line == "}" => drop(scope.pop()),
                None if line.is_empty() => {}
                None => {
                    *counts.entry(format!("rules/{}/{line}", scope.join("/"))).or_default() += 1
                }
            }
        }
        counts.into_iter().for_each(|(path, count)| self.set(path, count.to_string()));
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| match value {
            Some(text) => text.chars().take(MOST_SHOWN).collect(),
            None => "nothing".to_owned(),
        };
        write!(f, "{}: theirs {}, ours {}", self.path, show(&self.theirs), show(&self.ours))
    }
}

/// A rule that has the Ethernet address of a container that was not looked at, without it.
fn without_mac(rule: &str) -> String {
    match rule.split_once("ether saddr ") {
        Some((before, rest)) if rest.contains(':') && !rest.starts_with(REQUESTED_MAC) => {
            let (_, after) = rest.split_once(' ').unwrap_or_default();
            format!("{before}ether saddr MAC-of-another {after}")
        }
        _ => rule.to_owned(),
    }
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The end of a pair as a bridge plugin names it.
fn is_drawn(name: &str) -> bool {
    let drawn = name.strip_prefix("veth");
    drawn.is_some_and(|drawn| drawn.len() == 8 && drawn.chars().all(|it| it.is_ascii_hexdigit()))
}

/// Of a value, in characters.
const MOST_SHOWN: usize = 200;
/// What the Ethernet addresses begin with that cases ask for.
pub(crate) const REQUESTED_MAC: &str = "c2:11:22";
const NO_MAC: &str = "00:00:00:00:00:00";
const HOST_SETTINGS: &[&str] = &[
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/cni0/accept_ra",
    "ipv6/conf/cni0/disable_ipv6",
    "ipv4/conf/cni0/route_localnet",
    "ipv4/conf/all/route_localnet",
];
const POD_SETTINGS: &[&str] = &[
    "ipv4/conf/eth0/arp_notify",
    "ipv6/conf/eth0/accept_dad",
    "ipv6/conf/eth0/accept_ra",
    "ipv6/conf/eth0/disable_ipv6",
    "ipv6/conf/eth0/enhanced_dad",
    "ipv6/conf/eth0/keep_addr_on_down",
    "ipv6/conf/lo/disable_ipv6",
];
