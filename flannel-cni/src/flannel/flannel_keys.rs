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
    /// What `ADD`, `CHECK` and `STATUS` go by.
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let keys: Keys = config.keys()?;
        keys.refuse()?;
        // As the runtime wrote it: names of annotations are among its keys.
        let runtime_config = config.object.get("runtimeConfig").and_then(Value::as_object).cloned();
        Ok(Self { runtime_config, ..Self::of(keys) })
    }

    /// What removals go by: pods have to go whatever `ADD` would refuse by now, and routes are nothing that has to.
    pub(super) fn read_for_removal(config: &Config) -> Self {
        let mut keys = Keys {
            subnet_file: config.readable(&["subnetFile"]).unwrap_or_default(),
            data_dir: config.readable(&["dataDir"]).unwrap_or_default(),
            delegate: config.readable(&["delegate"]).unwrap_or_default(),
            ipam: config.readable(&["ipam"]).unwrap_or_default(),
            ..Keys::default()
        };
        keys.delegate.retain(|key, value| key != "type" || value.is_string());
        keys.ipam.remove("routes");
        Self::of(keys)
    }

    fn of(keys: Keys) -> Self {
        let path = |text: String, default: &str| match &*text {
            "" => PathBuf::from(default),
            _ => PathBuf::from(text),
        };
        Self {
            wait: keys.wait().unwrap_or_default(),
            subnet_file: path(keys.subnet_file, "/run/flannel/subnet.env"),
            data_dir: path(keys.data_dir, "/var/lib/cni/flannel"),
            delegate: keys.delegate,
            ipam: keys.ipam,
            runtime_config: keys.runtime_config,
        }
    }
}

impl Keys {
    /// Whether a pod cannot be connected like this.
    fn refuse(&self) -> Result<(), Error> {
        let invalid = |what: &str| Error::new(Code::InvalidConfig, what);
        if self.delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return Err(invalid(
                "'delegate' dictionary, if present, must have (string) 'type' field",
            ));
        }
        for key in ["name", "ipam"] {
            if self.delegate.contains_key(key) {
                return Err(invalid(&format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
                )));
            }
        }
        self.wait()
            .map(drop)
            .ok_or_else(|| invalid("subnetFileWait is not a number of seconds from 0 to 60"))
    }

    fn wait(&self) -> Option<Duration> {
        let seconds = self.subnet_file_wait.unwrap_or(DEFAULT_WAIT);
        Duration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= MOST_WAIT)
    }
}

#[derive(Default, Deserialize)]
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
