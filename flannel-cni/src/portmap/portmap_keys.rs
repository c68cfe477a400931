use std::net::IpAddr;

use flannel_netlink::Namespace;
use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::{
    protocol::{AddResult, Code, Config, Error, or_default},
    rules::Backend,
};

/// The configuration as far as it concerns ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Portmap {
    pub(super) mappings: Vec<Mapping>,
    /// The container's first address of each family.
    pub(super) addresses: Vec<IpNetwork>,
    /// Whether packets of the node itself, and of the container to itself, get the node's address.
    pub(super) snat: bool,
    /// Whether those of everybody do.
    pub(super) masquerade_all: bool,
    /// What keeps the rules; `None` is whatever the node has.
    backend: Option<Backend>,
    /// For iptables: the bit that marks packets to be masqueraded,
    pub(super) mark_bit: u32,
    /// and the chain that sets it, if it is somebody else's.
    pub(super) external_set_mark_chain: Option<String>,
    /// What else packets have to fulfil, in the words of iptables or of nft.
    conditions_v4: Vec<String>,
    conditions_v6: Vec<String>,
}

/// One port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mapping {
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    /// The number of the protocol.
    pub(super) protocol: u8,
    /// The address of the node; unspecified is any of its family.
    pub(super) host_ip: Option<IpAddr>,
}

impl Mapping {
    /// Whether a rule for the container's `address` is made of it.
    pub(super) fn applies_to(&self, address: IpNetwork) -> bool {
        self.host_ip.is_none_or(|host_ip| host_ip.is_ipv4() == address.is_ipv4())
    }

    pub(super) const fn protocol_name(&self) -> &'static str {
        match self.protocol {
            TCP => "tcp",
            UDP => "udp",
            _ => "sctp",
        }
    }
}

impl Portmap {
    /// What `ADD`, `CHECK` and `STATUS` go by.
    pub(super) fn read(config: &Config, interface: &str) -> Result<Self, Error> {
        let keys: Keys = config.keys()?;
        let invalid = |what: String| Error::new(Code::InvalidConfig, what);
        let backend = match &keys.backend {
            Some(name) => Some(
                Backend::named(name)
                    .ok_or_else(|| invalid(format!("unrecognized backend {name:?}")))?,
            ),
            None => None,
        };
        if keys.mark_masq_bit.is_some() && keys.external_set_mark_chain.is_some() {
            let message = "Cannot specify externalSetMarkChain and markMasqBit";
            return Err(invalid(message.to_owned()));
        }
        let mark_bit = keys.mark_masq_bit.unwrap_or(DEFAULT_MARK_BIT);
        let mark_bit = u32::try_from(mark_bit).ok().filter(|bit| *bit < u32::BITS);
        let mark_bit =
            mark_bit.ok_or_else(|| invalid("MasqMarkBit must be between 0 and 31".to_owned()))?;
        let mappings = keys.runtime_config.port_mappings.into_iter().map(MappingKeys::mapping);
        let previous = config.previous()?;
        let read = Self {
            mappings: mappings.collect::<Result<_, _>>().map_err(invalid)?,
            addresses: previous.map(|it| addresses(&it, interface)).unwrap_or_default(),
            snat: keys.snat.unwrap_or(true),
            masquerade_all: keys.masq_all,
            backend,
            mark_bit,
            external_set_mark_chain: keys.external_set_mark_chain,
            conditions_v4: keys.conditions_v4.unwrap_or_default(),
            conditions_v6: keys.conditions_v6.unwrap_or_default(),
        };
        if let Some(word) = read.words().find(|word| word.chars().any(char::is_control)) {
            return Err(invalid(format!("{word:?} has characters that no rule may have")));
        }
        if let Some(backend) = backend {
            read.refuse_other_than(backend)?;
        }
        Ok(read)
    }

    /// What keeps the rules.
    pub(super) async fn backend(&self, host: &Namespace) -> Result<Backend, Error> {
        if let Some(backend) = self.backend {
            return Ok(backend);
        }
        let backend = Backend::detect(host).await;
        self.refuse_other_than(backend).map(|()| backend)
    }

    /// What else packets to `address` have to fulfil.
    pub(super) fn conditions(&self, address: IpNetwork) -> &[String] {
        if address.is_ipv4() { &self.conditions_v4 } else { &self.conditions_v6 }
    }

    /// Whether there are conditions for IPv4 and for IPv6.
    pub(super) const fn with_conditions(&self) -> (bool, bool) {
        (!self.conditions_v4.is_empty(), !self.conditions_v6.is_empty())
    }

    fn words(&self) -> impl Iterator<Item = &String> {
        let conditions = self.conditions_v4.iter().chain(&self.conditions_v6);
        conditions.chain(&self.external_set_mark_chain)
    }

    /// Refuses keys that only another backend has.
    fn refuse_other_than(&self, backend: Backend) -> Result<(), Error> {
        // A condition of iptables begins with an option or its negation, and one of nft never does.
        let of = |conditions: &[String]| match conditions.first()?.chars().next()? {
            '-' | '!' => Some(Backend::Iptables),
            _ => Some(Backend::Nftables),
        };
        let keys = [
            (
                "externalSetMarkChain",
                self.external_set_mark_chain.as_ref().map(|_| Backend::Iptables),
            ),
            ("conditionsV4", of(&self.conditions_v4)),
            ("conditionsV6", of(&self.conditions_v6)),
        ];
        if let Some((key, Some(other))) =
            keys.iter().find(|(_, of)| of.is_some_and(|it| it != backend))
        {
            let (backend, other) = (backend.name(), other.name());
            let message = format!(
                "{backend} backend was requested but configuration contains {other}-specific options [{key}]"
            );
            return Err(Error::new(Code::InvalidConfig, message));
        }
        Ok(())
    }
}

/// The ports that `config` names, as far as they can be read: for `DEL`, which must not fail for the others.
pub(super) fn readable_mappings(config: &Config) -> Vec<Mapping> {
    let keys: Keys = config.keys().unwrap_or_default();
    let mappings = keys.runtime_config.port_mappings.into_iter();
    mappings.filter_map(|keys| keys.mapping().ok()).collect()
}

/// The first address of each family that is not known to be elsewhere than on the container's interface.
fn addresses(result: &AddResult, interface: &str) -> Vec<IpNetwork> {
    let of_container = result.ips.iter().filter(|ip| {
        let on = ip.interface.and_then(|index| result.interfaces.get(index));
        on.is_none_or(|on| on.name == interface && !on.sandbox.is_empty())
    });
    let mut of_container = of_container.map(|ip| ip.address);
    let of_ipv4 = of_container.clone().find(IpNetwork::is_ipv4);
    of_ipv4.into_iter().chain(of_container.find(IpNetwork::is_ipv6)).collect()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    backend: Option<String>,
    snat: Option<bool>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
    #[serde(default, deserialize_with = "or_default")]
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    runtime_config: RuntimeKeys,
}

#[derive(Default, Deserialize)]
struct RuntimeKeys {
    #[serde(rename = "portMappings", default, deserialize_with = "or_default")]
    port_mappings: Vec<MappingKeys>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MappingKeys {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default, deserialize_with = "or_default")]
    protocol: String,
    #[serde(rename = "hostIP", default, deserialize_with = "or_default")]
    host_ip: String,
}

impl MappingKeys {
    fn mapping(self) -> Result<Mapping, String> {
        let port = |number: i64, what: &str| match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("Invalid {what} port number: {number}")),
        };
        let protocol = match &*self.protocol.to_ascii_lowercase() {
            "tcp" => TCP,
            "udp" => UDP,
            "sctp" => SCTP,
            other => return Err(format!("Invalid protocol {other:?}, it is tcp, udp or sctp")),
        };
        let host_ip = match &*self.host_ip {
            "" => None,
            text => {
                let address = text.parse::<IpAddr>();
                Some(address.map_err(|error| format!("Invalid hostIP {text:?}: {error}"))?)
            }
        };
        Ok(Mapping {
            container_port: port(self.container_port, "container")?,
            host_port: port(self.host_port, "host")?,
            protocol,
            host_ip: host_ip.map(|address| address.to_canonical()),
        })
    }
}

const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const SCTP: u8 = 132;
/// As in containernetworking's plugin: Kubernetes uses 14 and 15, Calico 20 to 31.
const DEFAULT_MARK_BIT: i64 = 13;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(keys: Value) -> Result<Portmap, Error> {
        Portmap::read(&config(keys), "eth0")
    }

    fn config(keys: Value) -> Config {
        let mut config = json!({
            "name": "n", "cniVersion": "1.0.0",
            "prevResult": {
                "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
                "ips": [
                    {"address": "10.9.9.9/24", "interface": 0}, {"address": "10.1.2.3/24", "interface": 1},
                    {"address": "10.1.2.4/24", "interface": 1}, {"address": "fd00::3/64"},
                ],
            },
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Config::parse(config.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_containers_first_address_of_each_family_is_taken() {
        let config = read(json!({})).unwrap();
        let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.2.3/24", "fd00::3/64"]);
        assert!(config.snat && config.mappings.is_empty());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mapping = |mapping: Value| json!({"runtimeConfig": {"portMappings": [mapping]}});
        for (keys, expected) in [
            (
                mapping(json!({"hostPort": 0, "containerPort": 1, "protocol": "tcp"})),
                "Invalid host port number: 0",
            ),
            (
                mapping(json!({"hostPort": 1, "containerPort": 65536, "protocol": "tcp"})),
                "Invalid container port number: 65536",
            ),
            (
                mapping(json!({"hostPort": 1, "containerPort": 1, "protocol": "x"})),
                "Invalid protocol",
            ),
            (
                mapping(
                    json!({"hostPort": 1, "containerPort": 1, "protocol": "udp", "hostIP": "x"}),
                ),
                "Invalid hostIP",
            ),
            (json!({"backend": "x"}), "unrecognized backend \"x\""),
            (
                json!({"backend": "nftables", "conditionsV4": ["-d", "x"]}),
                "nftables backend was requested but configuration contains iptables-specific options [conditionsV4]",
            ),
            (
                json!({"backend": "iptables", "conditionsV6": ["ip6 daddr ::1"]}),
                "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
            ),
            (json!({"conditionsV4": ["-d", "x\n-F"]}), "\"x\\n-F\" has characters"),
            (json!({"externalSetMarkChain": "X", "markMasqBit": 1}), "Cannot specify"),
            (json!({"markMasqBit": 32}), "MasqMarkBit must be"),
        ] {
            let error = read(keys).unwrap_err();
            assert!(error.message.starts_with(expected), "{error}");
        }
        let fine = mapping(
            json!({"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "::"}),
        );
        let mapping = read(fine).unwrap().mappings[0];
        assert_eq!((mapping.host_port, mapping.protocol), (80, TCP));
        assert!(!mapping.applies_to("10.0.0.1/8".parse().unwrap()));
    }
}
