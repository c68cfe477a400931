//! The backend's options.

use flannel_backend::{read_mtu, smallest_mtu};
use flannel_core::{FieldError, Fields};
use flannel_netlink::state::IpFamily;
use flannel_tunnel::socket::overhead;
use ipnetwork::IpNetwork;

/// What the network's configuration says about this backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    /// The UDP port of every node that names no other.
    pub(crate) port: u16,
    /// The largest packet of the underlay, bytes; `None` takes the uplink's.
    pub(crate) mtu: Option<u32>,
    pub(crate) source_check: SourceCheck,
    /// Keep routers from cutting datagrams, so that senders can be told what a path takes. Where their ICMP does not arrive, large
    /// packets are lost.
    pub(crate) path_mtu_discovery: bool,
    pub(crate) engine: EngineChoice,
}

/// Whose packets are accepted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum SourceCheck {
    /// Anybody's.
    None,
    /// Known peers', whatever the source of the packet inside: nodes also send what they route or send themselves.
    #[default]
    Peer,
    /// Known peers', with a source inside of the peer's subnet.
    Subnet,
}

/// What carries the packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum EngineChoice {
    /// eBPF where the self-test passes, else userspace.
    #[default]
    Auto,
    /// eBPF, or no start at all.
    Ebpf,
    Userspace,
}

impl Settings {
    /// Reads the options. The default port is flannel's.
    pub(crate) fn read(options: &Fields, networks: &[IpNetwork]) -> Result<Self, FieldError> {
        let smallest = networks.iter().map(|network| match network {
            IpNetwork::V4(_) => smallest_mtu(IpFamily::V4) + overhead(network.ip()) as u32,
            // What is larger is sent in fragments.
            IpNetwork::V6(_) => smallest_mtu(IpFamily::V6),
        });
        let port = options.integer("Port", 1..=u64::from(u16::MAX))?;
        let engine = options.parsed("Engine", "auto, ebpf or userspace", |text| {
            Some(match text {
                "auto" => EngineChoice::Auto,
                "ebpf" => EngineChoice::Ebpf,
                "userspace" => EngineChoice::Userspace,
                _ => return None,
            })
        })?;
        Ok(Self {
            // The range makes the conversion lossless.
            port: port.map_or(PORT, |port| port as u16),
            mtu: read_mtu(options, smallest.max().unwrap_or_default())?,
            source_check: read_source_check(options)?,
            path_mtu_discovery: options.boolean("PathMTUDiscovery", true)?,
            engine: engine.unwrap_or_default(),
        })
    }

    /// These settings with what of `wanted` a running network can take up: the MTU.
    ///
    /// # Errors
    ///
    /// The keys of what it cannot.
    pub(crate) fn adopt(&self, wanted: Self) -> Result<Self, &'static str> {
        let adopted = Self { mtu: wanted.mtu, ..*self };
        let is_all = adopted == wanted;
        if is_all { Ok(adopted) } else { Err("Port, SourceCheck, Engine and PathMTUDiscovery") }
    }
}

/// One of the words, or what was the option before there were words.
fn read_source_check(options: &Fields) -> Result<SourceCheck, FieldError> {
    match options.raw("SourceCheck") {
        Some("true") => Ok(SourceCheck::Subnet),
        Some("false") => Ok(SourceCheck::None),
        _ => options
            .parsed("SourceCheck", "none, peer or subnet", |text| {
                Some(match text {
                    "none" => SourceCheck::None,
                    "peer" => SourceCheck::Peer,
                    "subnet" => SourceCheck::Subnet,
                    _ => return None,
                })
            })
            .map(Option::unwrap_or_default),
    }
}

/// As in flannel's udp backend.
const PORT: u16 = 8285;

pub(crate) const KNOWN: [&str; 6] =
    ["Type", "Port", "MTU", "SourceCheck", "Engine", "PathMTUDiscovery"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Settings, String> {
        let networks = ["10.244.0.0/16".parse().unwrap()];
        Settings::read(&Fields::parse(json).unwrap(), &networks).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let settings = Settings {
            port: 8285,
            mtu: None,
            source_check: SourceCheck::Peer,
            path_mtu_discovery: true,
            engine: EngineChoice::Auto,
        };
        assert_eq!(read(r#"{"Type":"udp"}"#), Ok(settings));
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let settings = read(
            r#"{"PORT":9000,"mtu":1400,"sourcecheck":false,"engine":"userspace","pathmtudiscovery":false}"#,
        )
        .unwrap();
        let expected = Settings {
            port: 9000,
            mtu: Some(1400),
            source_check: SourceCheck::None,
            path_mtu_discovery: false,
            engine: EngineChoice::Userspace,
        };
        assert_eq!(settings, expected);
        assert_eq!(read(r#"{"Engine":"ebpf"}"#).unwrap().engine, EngineChoice::Ebpf);
        let check = |json| read(json).unwrap().source_check;
        assert_eq!(check(r#"{"SourceCheck":true}"#), SourceCheck::Subnet);
        assert_eq!(check(r#"{"SourceCheck":"subnet"}"#), SourceCheck::Subnet);
        assert_eq!(check(r#"{"SourceCheck":"none"}"#), SourceCheck::None);
        assert_eq!(read(r#"{"Engine":"auto"}"#).unwrap().engine, EngineChoice::Auto);
    }

    #[test]
    fn what_is_invalid_is_named_with_what_would_be_valid() {
        for (json, words) in [
            (r#"{"Port":0}"#, "Port is 0, expected a whole number from 1 to 65535"),
            (r#"{"MTU":603}"#, "MTU is 603, expected a whole number from 604 to 65535"),
            (r#"{"Port":"8285"}"#, r#"Port is "8285", expected a whole number from 1 to 65535"#),
            (r#"{"Engine":"xdp"}"#, r#"Engine is "xdp", expected auto, ebpf or userspace"#),
            (r#"{"SourceCheck":1}"#, "SourceCheck is 1, expected none, peer or subnet"),
        ] {
            assert_eq!(read(json).unwrap_err(), words);
        }
    }

    #[test]
    fn a_running_network_adopts_another_mtu_alone() {
        let running = read("{}").unwrap();
        let adopt = |json| running.adopt(read(json).unwrap());
        assert_eq!(adopt(r#"{"MTU":1400}"#), read(r#"{"MTU":1400}"#).map_err(|_| ""));
        for json in [r#"{"Port":9000}"#, r#"{"MTU":1400,"SourceCheck":"none"}"#] {
            adopt(json).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn a_port_that_is_read_is_the_one_that_was_written(port: i64) {
            if let Ok(settings) = read(&format!(r#"{{"Port":{port}}}"#)) {
                prop_assert_eq!(i64::from(settings.port), port);
            }
        }
    }
}
