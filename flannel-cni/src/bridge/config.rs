use flannel_netlink::state::MacAddress;
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    protocol::{Arguments, Code, Config, Dns, Error, interface_name_flaw, or_default},
    rules::Backend,
};

/// The configuration as far as it concerns the bridge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Bridge {
    pub(super) name: String,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) masquerade: bool,
    /// By what; `None` is whatever the node has.
    pub(super) masquerade_backend: Option<Backend>,
    pub(super) mtu: u32,
    pub(super) hairpin: bool,
    pub(super) promiscuous: bool,
    pub(super) detect_duplicates: bool,
    pub(super) container_interface: bool,
    pub(super) isolated: bool,
    pub(super) mac: Option<MacAddress>,
    /// The plugin that gives addresses.
    pub(super) ipam: Option<String>,
    pub(super) dns: Dns,
}

impl Bridge {
    /// What `ADD` and `CHECK` go by.
    pub(super) fn read(config: &Config, arguments: &Arguments) -> Result<Self, Error> {
        let keys: Keys = config.keys()?;
        keys.refuse()?;
        let mac = arguments.mac.clone();
        let mac = keys.args.as_ref().and_then(|args| args.cni.as_ref()?.given()).or(mac);
        let mac = keys.runtime_config.given().or(mac).map(|text| text.parse::<MacAddress>());
        let mac = mac.transpose().map_err(|error| invalid(error.to_string()))?;
        if let Some(mac) = mac.filter(|mac| !mac.is_unicast()) {
            return Err(invalid(format!("the requested MAC {mac} is not a unicast address")));
        }
        Ok(Self::of(keys, mac))
    }

    /// What removals go by: whatever `ADD` would refuse, pods that another plugin connected, or this one under an older configuration,
    /// have to go.
    pub(super) fn read_for_removal(config: &Config) -> Result<Self, Error> {
        Ok(Self::of(config.keys()?, None))
    }

    fn of(keys: Keys, mac: Option<MacAddress>) -> Self {
        let name = if keys.bridge.is_empty() { DEFAULT_NAME.to_owned() } else { keys.bridge };
        Self {
            name,
            is_gateway: keys.is_gateway || keys.is_default_gateway,
            is_default_gateway: keys.is_default_gateway,
            force_address: keys.force_address,
            masquerade: keys.ip_masq,
            masquerade_backend: keys.ip_masq_backend.as_deref().and_then(Backend::named),
            mtu: keys.mtu,
            hairpin: keys.hairpin_mode,
            promiscuous: keys.promisc_mode,
            detect_duplicates: keys.enable_dad,
            container_interface: !keys.disable_container_interface,
            isolated: keys.port_isolation,
            mac,
            ipam: keys.ipam.and_then(|ipam| ipam.kind).filter(|kind| !kind.is_empty()),
            dns: keys.dns,
        }
    }
}

impl Keys {
    /// Whether a pod cannot be connected like this.
    fn refuse(&self) -> Result<(), Error> {
        let kind = self.ipam.as_ref().and_then(|ipam| ipam.kind.as_deref());
        if kind.is_some_and(|kind| !kind.is_empty()) && self.disable_container_interface {
            let message = "cannot use IPAM when DisableContainerInterface flag is set";
            return Err(invalid(message.to_owned()));
        }
        if self.hairpin_mode && self.promisc_mode {
            let message = "cannot set hairpin mode and promiscuous mode at the same time";
            return Err(invalid(message.to_owned()));
        }
        let name = &self.bridge;
        if let Some(flaw) = interface_name_flaw(name).filter(|_| !name.is_empty()) {
            return Err(invalid(format!("{name:?} cannot be the name of a bridge, it {flaw}")));
        }
        let unsupported = [
            ("macspoofchk", self.macspoofchk),
            ("vlan", self.vlan != 0),
            ("vlanTrunk", self.vlan_trunk.is_some()),
        ];
        if let Some((key, _)) = unsupported.into_iter().find(|(_, given)| *given) {
            return Err(Error::new(Code::UnsupportedField, format!("{key} is not supported"))
                .with_details("the bridge plugin of containernetworking has it"));
        }
        match self.ip_masq_backend.as_deref() {
            Some(backend) if Backend::named(backend).is_none() => {
                Err(invalid(format!("unknown ipmasq backend {backend:?}")))
            }
            _ => Ok(()),
        }
    }
}

impl MacKeys {
    fn given(&self) -> Option<String> {
        self.mac.clone().filter(|mac| !mac.is_empty())
    }
}

fn invalid(what: String) -> Error {
    Error::new(Code::InvalidConfig, what)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    #[serde(default, deserialize_with = "or_default")]
    bridge: String,
    #[serde(default, deserialize_with = "or_default")]
    is_gateway: bool,
    #[serde(default, deserialize_with = "or_default")]
    is_default_gateway: bool,
    #[serde(default, deserialize_with = "or_default")]
    force_address: bool,
    #[serde(default, deserialize_with = "or_default")]
    mtu: u32,
    #[serde(default, deserialize_with = "or_default")]
    hairpin_mode: bool,
    #[serde(default, deserialize_with = "or_default")]
    promisc_mode: bool,
    #[serde(default, deserialize_with = "or_default")]
    vlan: i64,
    vlan_trunk: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    ip_masq: bool,
    ip_masq_backend: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    macspoofchk: bool,
    #[serde(rename = "enabledad", default, deserialize_with = "or_default")]
    enable_dad: bool,
    #[serde(default, deserialize_with = "or_default")]
    disable_container_interface: bool,
    #[serde(default, deserialize_with = "or_default")]
    port_isolation: bool,
    ipam: Option<IpamKeys>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
    args: Option<ArgsKeys>,
    #[serde(default, deserialize_with = "or_default")]
    runtime_config: MacKeys,
}

#[derive(Deserialize)]
struct IpamKeys {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct ArgsKeys {
    cni: Option<MacKeys>,
}

#[derive(Default, Deserialize)]
struct MacKeys {
    mac: Option<String>,
}

/// As in containernetworking's plugin.
const DEFAULT_NAME: &str = "cni0";

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(keys: Value) -> Config {
        let mut config = json!({"name": "n", "cniVersion": "1.0.0", "type": "bridge"});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Config::parse(config.to_string().as_bytes()).unwrap()
    }

    fn read(keys: Value) -> Result<Bridge, Error> {
        let arguments = Arguments { mac: Some("c2:00:00:00:00:01".into()), ..Arguments::default() };
        Bridge::read(&config(keys), &arguments)
    }

    #[test]
    fn defaults_are_those_of_upstream() {
        let bridge = read(json!({"ipam": {}, "mtu": null})).unwrap();
        assert_eq!((&*bridge.name, bridge.mtu, &bridge.ipam), ("cni0", 0, &None));
        assert!(!bridge.is_gateway && !bridge.hairpin && bridge.container_interface);
        let bridge = read(json!({"isDefaultGateway": true, "ipam": {"type": "x"}})).unwrap();
        assert!(bridge.is_gateway && bridge.ipam.is_some());
    }

    #[test]
    fn the_runtimes_mac_is_before_that_of_args_and_of_the_environment() {
        let mac = |keys| read(keys).unwrap().mac.unwrap().to_string();
        assert_eq!(mac(json!({})), "c2:00:00:00:00:01");
        let args = json!({"cni": {"mac": "c2:00:00:00:00:02"}});
        assert_eq!(mac(json!({"args": args})), "c2:00:00:00:00:02");
        let runtime = json!({"mac": "c2:00:00:00:00:03"});
        assert_eq!(mac(json!({"args": args, "runtimeConfig": runtime})), "c2:00:00:00:00:03");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (keys, expected) in [
            (json!({"vlan": 7}), "vlan is not supported"),
            (json!({"vlanTrunk": []}), "vlanTrunk is not supported"),
            (json!({"hairpinMode": true, "promiscMode": true}), "same time"),
            (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), "cannot use IPAM"),
            (json!({"runtimeConfig": {"mac": "x"}}), "not an Ethernet address"),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), "not a unicast address"),
            (json!({"macspoofchk": true}), "macspoofchk"),
            (json!({"ipMasqBackend": "x"}), "unknown ipmasq backend \"x\""),
            (json!({"bridge": "a/b"}), "cannot be the name"),
            (json!({"bridge": "a\0b"}), "cannot be the name"),
        ] {
            let error = read(keys.clone()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
            Bridge::read_for_removal(&config(keys)).expect("it goes all the same");
        }
    }
}
