//! The backend's options.

use flannel_core::{FieldError, Fields};

/// What the network's configuration says about this backend.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    /// The UDP port of every node that names no other.
    pub(crate) port: u16,
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
    /// eBPF, or no start at all.
    Ebpf,
    /// What `auto` means as well: the eBPF engine loses packets that are NATed and TCP with peers that run flanneld.
    #[default]
    Userspace,
}

impl Settings {
    /// Reads the options. The default port is flannel's.
    pub(crate) fn read(options: &Fields) -> Result<Self, FieldError> {
        let port = options.integer("Port", 1..=u64::from(u16::MAX))?;
        let engine = options.parsed("Engine", "auto, ebpf or userspace", |text| {
            Some(match text {
                "ebpf" => EngineChoice::Ebpf,
                "auto" | "userspace" => EngineChoice::Userspace,
                _ => return None,
            })
        })?;
        Ok(Self {
            // The range makes the conversion lossless.
            port: port.map_or(PORT, |port| port as u16),
            source_check: read_source_check(options)?,
            path_mtu_discovery: options.boolean("PathMTUDiscovery", true)?,
            engine: engine.unwrap_or_default(),
        })
    }

    /// The members that nobody reads, which may be misspelled.
    pub(crate) fn unknown(options: &Fields) -> Vec<&str> {
        let known = |name: &&str| KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name));
        options.names().filter(|name| !known(name)).collect()
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

const KNOWN: [&str; 5] = ["Type", "Port", "SourceCheck", "Engine", "PathMTUDiscovery"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Settings, String> {
        Settings::read(&Fields::parse(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let settings = Settings {
            port: 8285,
            source_check: SourceCheck::Peer,
            path_mtu_discovery: true,
            engine: EngineChoice::Userspace,
        };
        assert_eq!(read(r#"{"Type":"udp"}"#), Ok(settings));
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let settings = read(
            r#"{"PORT":9000,"sourcecheck":false,"engine":"userspace","pathmtudiscovery":false}"#,
        )
        .unwrap();
        let expected = Settings {
            port: 9000,
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
        assert_eq!(read(r#"{"Engine":"auto"}"#).unwrap().engine, EngineChoice::Userspace);
    }

    #[test]
    fn what_is_invalid_is_named_with_what_would_be_valid() {
        for (json, words) in [
            (r#"{"Port":0}"#, "Port is 0, expected a whole number from 1 to 65535"),
            (r#"{"Port":"8285"}"#, r#"Port is "8285", expected a whole number from 1 to 65535"#),
            (r#"{"Engine":"xdp"}"#, r#"Engine is "xdp", expected auto, ebpf or userspace"#),
            (r#"{"SourceCheck":1}"#, "SourceCheck is 1, expected none, peer or subnet"),
        ] {
            assert_eq!(read(json).unwrap_err(), words);
        }
    }

    #[test]
    fn unknown_keys_are_listed() {
        let options = Fields::parse(r#"{"type":"udp","port":1,"Ports":2,"MTU":1400}"#).unwrap();
        assert_eq!(Settings::unknown(&options), ["Ports", "MTU"]);
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
