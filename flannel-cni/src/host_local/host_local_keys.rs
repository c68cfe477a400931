use std::{net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Range, RangeSet, kept::Patterns};
use crate::protocol::{Arguments, Code, Config, Error, Route, Version, block, or_default};

/// The configuration as far as it concerns addresses.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HostLocal {
    /// One address of each is given out.
    pub(super) ranges: Vec<RangeSet>,
    pub(super) routes: Vec<Route>,
    pub(super) data_dir: PathBuf,
    pub(super) resolv_conf: Option<PathBuf>,
    /// The addresses that are asked for.
    pub(super) requested: Vec<IpAddr>,
    /// Which pods get their addresses back.
    pub(super) keep_for: Patterns,
}

impl HostLocal {
    pub(super) fn read(config: &Config, arguments: &Arguments) -> Result<Self, Error> {
        let invalid = |what: String| Error::new(Code::InvalidConfig, what);
        let keys: Keys = config.keys()?;
        let Some(ipam) = keys.ipam else {
            return Err(invalid("IPAM config missing 'ipam' key".to_owned()));
        };
        let in_args = keys.args.and_then(|args| args.cni).map(|cni| cni.ips).unwrap_or_default();
        let runtime = keys.runtime_config;
        let requested = [in_args, runtime.ips].concat();
        let requested =
            arguments.ip.into_iter().chain(requested.into_iter().map(|ip| ip.0)).collect();
        // The old form, one range directly, comes first; what the runtime says before that.
        let single = ipam.single.subnet.is_some().then_some(vec![ipam.single]);
        let given = runtime.ip_ranges.into_iter().chain(single).chain(ipam.ranges);
        let mut ranges = Vec::new();
        for (number, set) in given.enumerate() {
            let set = set.into_iter().map(RangeKeys::range).collect::<Result<_, _>>();
            let set = set.and_then(RangeSet::new);
            ranges
                .push(set.map_err(|what| invalid(format!("invalid range set {number}: {what}")))?);
        }
        if ranges.is_empty() {
            return Err(invalid("no IP ranges specified".to_owned()));
        }
        let of_ipv4 = ranges.iter().filter(|set| set.is_ipv4()).count();
        if config.version < Version::V0_3_0 && (of_ipv4 > 1 || ranges.len() - of_ipv4 > 1) {
            let message = format!(
                "CNI version {} does not support more than 1 address per family",
                config.version
            );
            return Err(invalid(message));
        }
        for (number, one) in ranges.iter().enumerate() {
            let later = ranges[number + 1..].iter().position(|other| one.overlaps(other));
            if let Some(other) = later {
                let other = number + 1 + other;
                return Err(invalid(format!("range set {number} overlaps with {other}")));
            }
        }
        let resolv_conf = Some(PathBuf::from(ipam.resolv_conf));
        Ok(Self {
            ranges,
            routes: ipam.routes,
            data_dir: data_dir(ipam.data_dir),
            resolv_conf: resolv_conf.filter(|path| path.as_os_str() != ""),
            requested,
            keep_for: Patterns::new(ipam.keep_addresses_for).map_err(invalid)?,
        })
    }
}

/// Where addresses are kept: all that removals go by, since pods have to go whatever `ADD` would refuse by now.
pub(super) fn data_dir_for_removal(config: &Config) -> PathBuf {
    data_dir(config.readable(&["ipam", "dataDir"]).unwrap_or_default())
}

fn data_dir(given: String) -> PathBuf {
    if given.is_empty() { DATA_DIR.into() } else { given.into() }
}

#[derive(Deserialize)]
struct Keys {
    ipam: Option<IpamKeys>,
    args: Option<ArgsKeys>,
    #[serde(rename = "runtimeConfig", default, deserialize_with = "or_default")]
    runtime_config: RuntimeKeys,
}

#[derive(Deserialize)]
struct IpamKeys {
    #[serde(flatten)]
    single: RangeKeys,
    #[serde(rename = "dataDir", default, deserialize_with = "or_default")]
    data_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    ranges: Vec<Vec<RangeKeys>>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<Route>,
    #[serde(rename = "resolvConf", default, deserialize_with = "or_default")]
    resolv_conf: String,
    #[serde(rename = "keepAddressesFor", default, deserialize_with = "or_default")]
    keep_addresses_for: Vec<String>,
}

#[derive(Deserialize)]
struct RangeKeys {
    #[serde(default, deserialize_with = "block::optional")]
    subnet: Option<IpNetwork>,
    #[serde(rename = "rangeStart")]
    start: Option<IpAddr>,
    #[serde(rename = "rangeEnd")]
    end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

impl RangeKeys {
    fn range(self) -> Result<Range, String> {
        let subnet = self.subnet.ok_or_else(|| "a range has no subnet".to_owned())?;
        Range::new(subnet, self.start, self.end, self.gateway)
    }
}

#[derive(Deserialize)]
struct ArgsKeys {
    cni: Option<CniKeys>,
}

#[derive(Deserialize)]
struct CniKeys {
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<Requested>,
}

#[derive(Default, Deserialize)]
struct RuntimeKeys {
    #[serde(rename = "ipRanges", default, deserialize_with = "or_default")]
    ip_ranges: Vec<Vec<RangeKeys>>,
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<Requested>,
}

/// An address, or one with a prefix, of which the prefix does not count.
#[derive(Clone, Copy)]
struct Requested(IpAddr);

impl<'de> Deserialize<'de> for Requested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network: IpNetwork = text.parse().map_err(D::Error::custom)?;
        Ok(Self(network.ip().to_canonical()))
    }
}

/// As in containernetworking's plugin.
const DATA_DIR: &str = "/var/lib/cni/networks";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(config: Value) -> Result<HostLocal, Error> {
        let config = Config::parse(config.to_string().as_bytes())?;
        HostLocal::read(&config, &Arguments::default())
    }

    #[test]
    fn the_runtimes_ranges_come_first_and_then_the_single_one() {
        let config = read(json!({
            "name": "n", "cniVersion": "1.0.0",
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/24"}]], "ips": ["10.0.0.9/24"]},
            "args": {"cni": {"ips": ["10.0.1.9"]}},
            "ipam": {
                "type": "host-local", "subnet": "10.0.1.0/24", "rangeStart": "10.0.1.5",
                "ranges": [[{"subnet": "fd00::/64"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }))
        .unwrap();
        let ranges: Vec<String> = config.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges[..2], ["10.0.0.1-10.0.0.254", "10.0.1.5-10.0.1.254"]);
        assert_eq!(
            config.requested,
            ["10.0.1.9", "10.0.0.9"].map(|it| it.parse::<IpAddr>().unwrap())
        );
        assert_eq!(config.data_dir, PathBuf::from(DATA_DIR));
        assert_eq!(config.routes.len(), 1);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (ipam, expected) in [
            (Value::Null, "missing 'ipam'"),
            (json!({}), "no IP ranges"),
            (json!({"ranges": [[]]}), "range set 0: empty"),
            (json!({"ranges": [[{}]]}), "range set 0: a range has no subnet"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/31"}]]}), "range set 0: Network"),
            (
                json!({"subnet": "10.0.0.0/24", "ranges": [[{"subnet": "10.0.0.0/16"}]]}),
                "range set 0 overlaps with 1",
            ),
            (json!({"subnet": 7}), "cannot use the network configuration"),
            (
                json!({"subnet": "10.0.0.0/24", "dataDir": 7}),
                "cannot use the network configuration",
            ),
            (json!("host-local"), "cannot use the network configuration"),
            (
                json!({"subnet": "10.0.0.0/24", "keepAddressesFor": ["db-*"]}),
                "keepAddressesFor has \"db-*\", not NAMESPACE/POD",
            ),
        ] {
            let config = json!({"name": "n", "cniVersion": "1.0.0", "ipam": ipam});
            let error = read(config.clone()).unwrap_err();
            let removal =
                data_dir_for_removal(&Config::parse(config.to_string().as_bytes()).unwrap());
            assert_eq!(removal, PathBuf::from(DATA_DIR), "it goes all the same");
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.message.contains(expected), "{error}");
        }
        let two = json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.1.0/24"}]]});
        let error = read(json!({"name": "n", "cniVersion": "0.2.0", "ipam": two})).unwrap_err();
        assert!(error.message.contains("0.2.0 does not support"), "{error}");
    }

    proptest! {
        #[test]
        fn any_ranges_are_read_without_panic(
            subnet in "(10\\.0\\.[0-9]{1,3}\\.[0-9]{1,3}|fd00::[0-9a-f]{0,4}|255\\.255\\.255\\.[0-9]{1,3}|ff+::)/[0-9]{1,3}",
            start in "[0-9a-f:.]{0,12}",
        ) {
            let set = |range: Value| json!({"name": "n", "ipam": {"ranges": [[range]]}});
            let _ = read(set(json!({"subnet": subnet})));
            let _ = read(set(json!({"subnet": subnet, "rangeStart": start, "rangeEnd": start, "gateway": start})));
        }
    }
}
