//! Results as JSON of each version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{AddResult, Code, Dns, Error, Interface, Ip, Route, Version};

impl AddResult {
    /// The result as a plugin prints it.
    ///
    /// # Errors
    ///
    /// [`Code::IncompatibleVersion`] if the version cannot express it: 0.2.0 and older need an address.
    pub fn to_json(&self, version: Version) -> Result<String, Error> {
        self.to_value(version).map(|value| pretty(&value))
    }

    /// The result as it stands in the configuration of the next plugin.
    ///
    /// # Errors
    ///
    /// As [`to_json`](Self::to_json).
    pub fn to_value(&self, version: Version) -> Result<Value, Error> {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.text().into());
        if version <= Version::V0_2_0 {
            for (key, ipv4) in [("ip4", true), ("ip6", false)] {
                if let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4) {
                    object.insert(key.into(), self.old_ip(ip));
                }
            }
            if object.len() == 1 {
                let message =
                    format!("version {version} of CNI cannot express a result without an address");
                return Err(Error::new(Code::IncompatibleVersion, message));
            }
            object.insert("dns".into(), json!(self.dns));
            return Ok(Value::Object(object));
        }
        let old = version <= Version::V0_4_0;
        let mut interfaces = Vec::new();
        for interface in &self.interfaces {
            let Interface { name, mac, sandbox, .. } = interface.clone();
            interfaces.push(match old {
                true => Interface { name, mac, sandbox, ..Interface::default() },
                false => interface.clone(),
            });
        }
        let mut ips: Vec<Value> = self.ips.iter().map(|ip| json!(ip)).collect();
        for ip in ips.iter_mut().zip(&self.ips).filter(|_| old) {
            ip.0["version"] = if ip.1.address.is_ipv4() { "4".into() } else { "6".into() };
        }
        let lists = [
            ("interfaces", json!(interfaces), interfaces.is_empty()),
            ("ips", json!(ips), ips.is_empty()),
            ("routes", json!(self.routes), self.routes.is_empty()),
            ("dns", json!(self.dns), self.dns.is_empty() && !old),
        ];
        for (key, list, _) in lists.into_iter().filter(|(_, _, empty)| !empty) {
            object.insert(key.into(), list);
        }
        Ok(Value::Object(object))
    }

    /// Reads what a plugin printed. `version` is what it means if it does not say.
    ///
    /// # Errors
    ///
    /// [`Code::Decoding`] if it is no result, [`Code::IncompatibleVersion`].
    pub fn from_json(value: &Value, version: Version) -> Result<Self, Error> {
        let unreadable = |error: serde_json::Error| {
            Error::new(Code::Decoding, format!("cannot read the result of a plugin: {error}"))
        };
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            Some(text) if !text.is_empty() => Version::parse(text)?,
            _ => version,
        };
        if version <= Version::V0_2_0 {
            let old = OldResult::deserialize(value).map_err(unreadable)?;
            return Ok(old.into());
        }
        let new = NewResult::deserialize(value).map_err(unreadable)?;
        Ok(Self {
            interfaces: new.interfaces.unwrap_or_default(),
            ips: new.ips.unwrap_or_default(),
            routes: new.routes.unwrap_or_default(),
            dns: new.dns.unwrap_or_default(),
        })
    }

    /// An address with the routes of its family, as before 0.3.0.
    fn old_ip(&self, ip: &Ip) -> Value {
        let of_family = |route: &&Route| route.dst.is_ipv4() == ip.address.is_ipv4();
        let routes = self.routes.iter().filter(of_family);
        let routes = routes.map(|route| Route::new(route.dst, route.gw)).collect();
        json!(OldIp { ip: ip.address, gateway: ip.gateway.map(|it| it.to_string()), routes })
    }
}

/// With four spaces, as Go's plugins print.
pub(super) fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
    value.serialize(&mut serializer).expect("a JSON value can be written into memory");
    String::from_utf8(out).expect("JSON is UTF-8")
}

#[derive(Deserialize)]
struct NewResult {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Ip>>,
    routes: Option<Vec<Route>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct OldResult {
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    dns: Option<Dns>,
}

#[derive(Deserialize, Serialize)]
struct OldIp {
    #[serde(with = "super::block")]
    ip: ipnetwork::IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "super::config::or_default"
    )]
    routes: Vec<Route>,
}

impl From<OldResult> for AddResult {
    fn from(old: OldResult) -> Self {
        let mut result = Self { dns: old.dns.unwrap_or_default(), ..Self::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            let gateway = ip.gateway.and_then(|text| text.parse::<IpAddr>().ok());
            let gateway = gateway.map(|address| address.to_canonical());
            result.ips.push(Ip { interface: None, address: ip.ip, gateway });
            result.routes.extend(ip.routes);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dual() -> AddResult {
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "c2:00:00:00:00:01".into(),
                mtu: 1450,
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![
                Ip {
                    interface: Some(0),
                    address: "10.1.2.3/24".parse().unwrap(),
                    gateway: Some("10.1.2.1".parse().unwrap()),
                },
                Ip { interface: Some(0), address: "fd00::3/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.2.1".parse().unwrap())),
                Route { mtu: 1400, ..Route::new("fd01::/16".parse().unwrap(), None) },
            ],
            dns: Dns::default(),
        }
    }

    // What the Go library of containernetworking/cni 1.3.1 prints for the same result.
    #[test]
    fn each_version_has_its_own_words() {
        let old = json!({
            "cniVersion": "0.2.0",
            "ip4": {
                "ip": "10.1.2.3/24", "gateway": "10.1.2.1",
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}],
            },
            "ip6": {"ip": "fd00::3/64", "routes": [{"dst": "fd01::/16"}]},
            "dns": {},
        });
        assert_eq!(dual().to_value(Version::V0_2_0).unwrap(), old);
        let middle = json!({
            "cniVersion": "0.4.0",
            "interfaces": [{"name": "eth0", "mac": "c2:00:00:00:00:01", "sandbox": "/run/netns/x"}],
            "ips": [
                {"version": "4", "interface": 0, "address": "10.1.2.3/24", "gateway": "10.1.2.1"},
                {"version": "6", "interface": 0, "address": "fd00::3/64"},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.1.2.1"}, {"dst": "fd01::/16", "mtu": 1400},
            ],
            "dns": {},
        });
        assert_eq!(dual().to_value(Version::V0_4_0).unwrap(), middle);
        let new = dual().to_value(Version::V1_1_0).unwrap();
        assert_eq!(new["interfaces"][0]["mtu"], 1450);
        assert!(new.get("dns").is_none() && new["ips"][0].get("version").is_none());
    }

    #[test]
    fn a_result_is_read_as_it_was_written() {
        for version in Version::ALL {
            let value = dual().to_value(version).unwrap();
            let read = AddResult::from_json(&value, Version::V1_0_0).unwrap();
            assert_eq!(read.to_value(version).unwrap(), value, "{version}");
            if version >= Version::V1_0_0 {
                assert_eq!(read, dual());
            }
        }
    }

    #[test]
    fn without_an_address_the_oldest_versions_have_no_result() {
        let empty = AddResult::default();
        let error = empty.to_value(Version::V0_2_0).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
        assert!(empty.to_value(Version::V0_3_0).is_ok());
    }

    #[test]
    fn an_address_of_ipv4_in_the_form_of_ipv6_is_one_of_ipv4() {
        let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.3/24", "gateway": "::ffff:10.1.2.1"}});
        let read = AddResult::from_json(&old, Version::V0_2_0).unwrap();
        assert_eq!(read.ips[0].gateway, Some("10.1.2.1".parse().unwrap()));
    }

    #[test]
    fn what_go_leaves_empty_is_nothing() {
        let value = json!({
            "cniVersion": "1.0.0", "interfaces": null, "dns": {"nameservers": null},
            "ips": [{"address": "10.1.2.3/24", "gateway": ""}],
            "routes": [{"dst": "0.0.0.0/0", "gw": null}],
        });
        let result = AddResult::from_json(&value, Version::V1_1_0).unwrap();
        assert_eq!((result.ips[0].gateway, result.routes[0].gw), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            if let Ok(value) = serde_json::from_str(&text) {
                let _ = AddResult::from_json(&value, Version::V0_1_0);
            }
        }
    }
}
