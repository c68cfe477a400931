use serde::Deserialize;

/// One interface of one container.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Attachment {
    /// The container, as the runtime names it.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface inside of the container.
    #[serde(rename = "ifname")]
    pub interface: String,
}
