//! Where the network's configuration is: a file, or a ConfigMap.

use std::{collections::BTreeMap, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use flannel_core::{NetworkConfig, StoreError};
use flannel_kube::{Client, Projection, Reflector, ReflectorOptions, Resource};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::Deserialize;
use tokio::time::sleep;

use super::unavailable;

/// Where the network's configuration is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NetworkSource {
    /// A ConfigMap with a member `net-conf.json`. Changes are seen at once.
    ConfigMap {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A file, which is looked at every two seconds.
    File(PathBuf),
}

impl NetworkSource {
    /// The text as it is now; `None` if there is none.
    pub(crate) async fn text(&self, client: &Client) -> Result<Option<String>, StoreError> {
        match self {
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(StoreError::Unavailable {
                    operation: format!("read {}", path.display()),
                    source: source.into(),
                }),
            },
            Self::ConfigMap { namespace, name } => {
                let resource = Resource::namespaced("configmaps", namespace);
                match client.get(&resource, name).await {
                    Ok(object) => Ok(serde_json::from_slice::<ConfigMapView>(&object)
                        .ok()
                        .and_then(|mut map| map.data.remove(MEMBER))),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(unavailable(format!("read {self}"), error)),
                }
            }
        }
    }

    /// What a text says.
    pub(crate) fn parse(&self, text: Option<&str>) -> Result<NetworkConfig, StoreError> {
        let place = self.to_string();
        match text {
            None => Err(StoreError::ConfigMissing { place }),
            Some(text) => NetworkConfig::of_cluster(text)
                .map_err(|source| StoreError::Config { place, source }),
        }
    }

    /// The configuration, and then each change of it.
    pub(crate) fn watch(
        &self,
        client: Client,
    ) -> BoxStream<'static, Result<NetworkConfig, StoreError>> {
        let source = self.clone();
        match self {
            Self::File(_) => {
                let polled = stream::unfold(
                    (source, client, None),
                    |(source, client, mut last)| async move {
                        loop {
                            let text = source.text(&client).await;
                            // What keeps the file from being read is told once.
                            let seen = text.as_ref().map(Clone::clone).map_err(ToString::to_string);
                            if last.as_ref() != Some(&seen) {
                                let item = text.and_then(|text| source.parse(text.as_deref()));
                                return Some((item, (source, client, Some(seen))));
                            }
                            last = Some(seen);
                            sleep(LOOK_EVERY).await;
                        }
                    },
                );
                polled.boxed()
            }
            Self::ConfigMap { namespace, name } => {
                let resource = Resource::namespaced("configmaps", namespace).only(name);
                let options = ReflectorOptions::default();
                let reflector = Reflector::new(client, resource, ConfigProjection, options);
                let followed =
                    stream::unfold((source, reflector), |(source, mut reflector)| async {
                        let item = match reflector.next().await {
                            Err(error) => Err(unavailable(format!("watch {source}"), error)),
                            Ok(_) => {
                                let text = reflector.objects().values().next().cloned().flatten();
                                source.parse(text.as_deref())
                            }
                        };
                        Some((item, (source, reflector)))
                    });
                followed.boxed()
            }
        }
    }
}

impl fmt::Display for NetworkSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::ConfigMap { namespace, name } => {
                write!(f, "{MEMBER} of the ConfigMap {namespace}/{name}")
            }
        }
    }
}

struct ConfigProjection;

impl Projection for ConfigProjection {
    type Kept = Option<String>;

    fn project(&self, _: &Arc<str>, object: &str) -> Result<Option<String>, serde_json::Error> {
        let mut map: ConfigMapView = serde_json::from_str(object)?;
        Ok(map.data.remove(MEMBER))
    }
}

#[derive(Deserialize)]
struct ConfigMapView {
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// As in flannel's manifest.
const MEMBER: &str = "net-conf.json";
const LOOK_EVERY: Duration = Duration::from_secs(2);
