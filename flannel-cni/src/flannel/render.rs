//! The configuration of the plugin that does the work. Pure.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use super::{flannel_keys::Flannel, subnet_env::SubnetEnv};
use crate::protocol::{Code, Config, Error, Route};

/// What flannel's own plugin would hand on. Mirrors `doCmdAdd` in flannel_linux.go of flannel-io/cni-plugin at 092e6d2.
pub(super) fn delegate(
    config: &Config,
    flannel: &Flannel,
    subnet: &SubnetEnv,
) -> Result<Map<String, Value>, Error> {
    let mut delegated = flannel.delegate.clone();
    if let Some(runtime_config) = &flannel.runtime_config {
        delegated.insert("runtimeConfig".into(), runtime_config.clone().into());
    }
    delegated.insert("name".into(), config.name.clone().into());
    let mut default = |key: &str, value: Value| {
        delegated.entry(key).or_insert(value);
    };
    default("type", "bridge".into());
    // One of the two masquerades.
    default("ipMasq", (!subnet.masquerades).into());
    default("mtu", subnet.mtu.into());
    if delegated["type"] == "bridge" {
        delegated.entry("isGateway").or_insert(true.into());
    }
    if let Some(version) = config.object.get("cniVersion").filter(|it| it.as_str() != Some("")) {
        delegated.insert("cniVersion".into(), version.clone());
    }
    delegated.insert("ipam".into(), ipam(flannel, subnet)?.into());
    Ok(delegated)
}

fn ipam(flannel: &Flannel, subnet: &SubnetEnv) -> Result<Map<String, Value>, Error> {
    let mut ipam = flannel.ipam.clone();
    let mut routes: Vec<Route> = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(routes) => serde_json::from_value(routes).map_err(|error| {
            Error::new(Code::InvalidConfig, format!("failed to parse ipam.routes: {error}"))
        })?,
    };
    routes.extend(subnet.networks.iter().map(|network| Route::new(*network, None)));
    let subnets = [subnet.subnet, subnet.ipv6_subnet].into_iter().flatten();
    let ranges: Vec<Value> = subnets.map(|subnet: IpNetwork| json!([{"subnet": subnet}])).collect();
    ipam.entry("type").or_insert("host-local".into());
    ipam.insert("ranges".into(), ranges.into());
    ipam.insert("routes".into(), json!(routes));
    Ok(ipam)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(keys: Value, env: &str) -> Result<String, Error> {
        let mut config = json!({"name": "cni-flannel", "type": "flannel"});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let config = Config::parse(config.to_string().as_bytes())?;
        let flannel = Flannel::read(&config)?;
        let subnet = SubnetEnv::parse(env, "subnet.env")?;
        delegate(&config, &flannel, &subnet).map(|map| Value::Object(map).to_string())
    }

    const IPV4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    // The keys are those of flannel-io/cni-plugin's flannel_test.go, where Go writes them sorted too.
    #[test]
    fn the_configuration_is_that_of_flannels_plugin() {
        let expected = concat!(
            r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"#,
            r#""isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}"#,
        );
        assert_eq!(rendered(json!({}), IPV4).unwrap(), expected);
    }

    #[test]
    fn both_families_have_a_range_and_a_route() {
        let dual =
            format!("{IPV4}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n");
        let rendered: Value = serde_json::from_str(&rendered(json!({}), &dual).unwrap()).unwrap();
        let expected = json!({
            "type": "host-local",
            "ranges": [[{"subnet": "10.1.17.0/24"}], [{"subnet": "fd00:0:0:7::/64"}]],
            "routes": [{"dst": "10.1.0.0/16"}, {"dst": "fd00::/48"}],
        });
        assert_eq!(rendered["ipam"], expected);
    }

    #[test]
    fn what_the_runtime_says_is_handed_on_as_it_is() {
        let keys = json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"Owner": "x", "owner": "y"}, "PortMappings": [{"HostPort": 1}]}});
        let rendered: Value = serde_json::from_str(&rendered(keys.clone(), IPV4).unwrap()).unwrap();
        assert_eq!(rendered["runtimeConfig"], keys["runtimeConfig"]);
    }

    #[test]
    fn what_the_user_says_is_kept() {
        let keys = json!({
            "cniVersion": "1.0.0", "runtimeConfig": {"mac": "c2:00:00:00:00:01"},
            "delegate": {"type": "macvlan", "mtu": 9000, "master": "eth0", "ipMasq": true},
            "ipam": {"type": "static", "extra": 1, "ranges": 7, "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9"}]},
        });
        let rendered: Value = serde_json::from_str(&rendered(keys, IPV4).unwrap()).unwrap();
        let expected = json!({
            "name": "cni-flannel", "cniVersion": "1.0.0", "runtimeConfig": {"mac": "c2:00:00:00:00:01"},
            "type": "macvlan", "mtu": 9000, "master": "eth0", "ipMasq": true,
            "ipam": {
                "type": "static", "extra": 1, "ranges": [[{"subnet": "10.1.17.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9"}, {"dst": "10.1.0.0/16"}],
            },
        });
        assert_eq!(rendered, expected);
    }

    #[test]
    fn what_flannel_sets_itself_is_refused() {
        for (keys, expected) in [
            (
                json!({"delegate": {"name": "x"}}),
                "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
            ),
            (
                json!({"delegate": {"ipam": {}}}),
                "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
            ),
            (
                json!({"delegate": {"type": 7}}),
                "'delegate' dictionary, if present, must have (string) 'type' field",
            ),
            (json!({"ipam": {"routes": 7}}), "failed to parse ipam.routes"),
            (json!({"subnetFileWait": -1}), "subnetFileWait is not"),
        ] {
            let error = rendered(keys, IPV4).unwrap_err();
            assert!(error.message.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn who_masquerades_is_one_of_the_two() {
        let env = IPV4.replace("IPMASQ=true", "IPMASQ=false");
        assert!(rendered(json!({}), &env).unwrap().contains(r#""ipMasq":true"#));
    }
}
