use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Duration;

use crate::protocol::{Code, Config, Error, or_default};

/// The configuration as far as it concerns flannel.
#[derive(Clone, Debug)]
pub(super) struct Flannel {
    pub(super) subnet_file: PathBuf,
    pub(super) data_dir: PathBuf,
    /// How long `ADD` waits for the subnet file.
    pub(super) wait: Duration,
    pub(super) delegate: Map<String, Value>,
    pub(super) ipam: Map<String, Value>,
    pub(super) runtime_config: Option<Map<String, Value>>,
}

impl Flannel {
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let invalid = |what: &str| Error::new(Code::InvalidConfig, what);
        let keys: Keys = config.keys()?;
        if keys.delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return Err(invalid(
                "'delegate' dictionary, if present, must have (string) 'type' field",
            ));
        }
        for key in ["name", "ipam"] {
            if keys.delegate.contains_key(key) {
                return Err(invalid(&format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
                )));
            }
        }
        let has_bandwidth =
            |map: &Map<String, Value>| map.get("bandwidth").is_some_and(|it| !it.is_null());
        if keys.runtime_config.as_ref().is_some_and(has_bandwidth) {
            return Err(Error::new(Code::UnsupportedField, "bandwidth is not supported")
                .with_details(
                    "chain the bandwidth plugin of containernetworking, which has that capability",
                ));
        }
        let wait = keys.subnet_file_wait.unwrap_or(DEFAULT_WAIT);
        let wait = Duration::try_from_secs_f64(wait).ok().filter(|wait| *wait <= MOST_WAIT);
        let wait =
            wait.ok_or_else(|| invalid("subnetFileWait is not a number of seconds from 0 to 60"))?;
        let path = |text: String, default: &str| match &*text {
            "" => PathBuf::from(default),
            _ => PathBuf::from(text),
        };
        Ok(Self {
            subnet_file: path(keys.subnet_file, "/run/flannel/subnet.env"),
            data_dir: path(keys.data_dir, "/var/lib/cni/flannel"),
            wait,
            delegate: keys.delegate,
            ipam: keys.ipam,
            runtime_config: keys.runtime_config,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    #[serde(default, deserialize_with = "or_default")]
    subnet_file: String,
    #[serde(default, deserialize_with = "or_default")]
    data_dir: String,
    subnet_file_wait: Option<f64>,
    #[serde(default, deserialize_with = "or_default")]
    delegate: Map<String, Value>,
    #[serde(default, deserialize_with = "or_default")]
    ipam: Map<String, Value>,
    runtime_config: Option<Map<String, Value>>,
}

/// In seconds: as long as a flannel takes that is about to write the file. Runtimes ask again by themselves.
const DEFAULT_WAIT: f64 = 1.0;
/// Less than runtimes wait for a plugin.
const MOST_WAIT: Duration = Duration::from_secs(60);
