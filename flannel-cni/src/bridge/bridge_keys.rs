use flannel_netlink::state::MacAddress;
use serde::Deserialize;

use super::{
    bandwidth::{Bandwidth, BandwidthKeys},
    vlans::{TrunkKeys, Vlans},
};
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
    pub(super) vlans: Vlans,
    /// Whether the container may send with its own Ethernet address only.
    pub(super) spoof_check: bool,
    pub(super) bandwidth: Bandwidth,
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
        let in_args = keys.args.as_ref().and_then(|args| args.cni.as_ref()?.mac.as_ref());
        let wishes = [keys.runtime_config.mac.as_ref(), in_args];
        let wish = wishes.into_iter().flatten().find(|mac| !mac.is_empty());
        let mac = wish.or(arguments.mac.as_ref()).map(|text| text.parse::<MacAddress>());
        let mac = mac.transpose().map_err(|error| invalid(error.to_string()))?;
        if let Some(mac) = mac.filter(|mac| !mac.is_unicast()) {
            return Err(invalid(format!("the requested MAC {mac} is not a unicast address")));
        }
        let trunk = keys.vlan_trunk.as_deref();
        let vlans = Vlans::new(keys.vlan, trunk, keys.preserve_default_vlan).map_err(invalid)?;
        let bandwidth = Bandwidth::new(keys.runtime_config.bandwidth).map_err(invalid)?;
        let bridge = Self { mac, vlans, bandwidth, ..Self::of(keys) };
        let gateway = bridge.gateway_name();
        let flaw = interface_name_flaw(&gateway);
        match flaw.filter(|_| bridge.is_gateway && bridge.vlans.id != 0) {
            Some(flaw) => {
                Err(invalid(format!("{gateway:?} cannot be the gateway of a VLAN, it {flaw}")))
            }
            None => Ok(bridge),
        }
    }

    fn of(keys: Keys) -> Self {
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
            vlans: Vlans::default(),
            spoof_check: keys.macspoofchk,
            bandwidth: Bandwidth::default(),
            mac: None,
            ipam: keys.ipam.and_then(|ipam| ipam.kind).filter(|kind| !kind.is_empty()),
            dns: keys.dns,
        }
    }

    /// The interface of the node that has the gateways of the VLAN.
    pub(super) fn gateway_name(&self) -> String {
        format!("{}.{}", self.name, self.vlans.id)
    }
}

/// The plugin that takes addresses back. Whatever `ADD` would refuse, pods that another plugin connected, or this one under an older
/// configuration, have to go.
pub(super) fn ipam_for_removal(config: &Config) -> Option<String> {
    config.readable(&["ipam", "type"]).filter(|kind: &String| !kind.is_empty())
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
        match self.ip_masq_backend.as_deref() {
            Some(backend) if Backend::named(backend).is_none() => {
                Err(invalid(format!("unknown ipmasq backend {backend:?}")))
            }
            _ => Ok(()),
        }
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
    vlan_trunk: Option<Vec<TrunkKeys>>,
    #[serde(default, deserialize_with = "or_default")]
    preserve_default_vlan: bool,
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
    runtime_config: RuntimeKeys,
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

#[derive(Deserialize)]
struct MacKeys {
    mac: Option<String>,
}

#[derive(Default, Deserialize)]
struct RuntimeKeys {
    mac: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    bandwidth: BandwidthKeys,
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
            (json!({"vlan": 4095}), "invalid VLAN ID 4095"),
            (json!({"vlanTrunk": [{"id": 0}]}), "incorrect trunk id"),
            (json!({"bridge": "bridge-of-20", "vlan": 200, "isGateway": true}), "of a VLAN"),
            (json!({"hairpinMode": true, "promiscMode": true}), "same time"),
            (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), "cannot use IPAM"),
            (json!({"runtimeConfig": {"mac": "x"}}), "not an Ethernet address"),
            (json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}), "not a unicast address"),
            (json!({"runtimeConfig": {"bandwidth": {"ingressRate": 9}}}), "burst must also be set"),
            (json!({"ipMasqBackend": "x"}), "unknown ipmasq backend \"x\""),
            (json!({"bridge": "a/b"}), "cannot be the name"),
            (json!({"bridge": "a\0b"}), "cannot be the name"),
        ] {
            let error = read(keys.clone()).unwrap_err();
            assert!(error.message.contains(expected), "{error}");
        }
    }
}
