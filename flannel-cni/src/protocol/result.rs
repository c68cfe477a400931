use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// What a plugin did for `ADD`, in the words of the newest version.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AddResult {
    /// The interfaces that were made, and those they lead to.
    pub interfaces: Vec<Interface>,
    /// The addresses that were given.
    pub ips: Vec<Ip>,
    /// The routes inside of the container.
    pub routes: Vec<Route>,
    /// What the container's resolver should use.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// The largest packet, bytes; 0 if nobody said.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The path of the namespace it is in; empty for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket of an interface in userspace.
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address of a device.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ip {
    /// Where it is, as an index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix.
    #[serde(with = "super::block")]
    pub address: IpNetwork,
    /// The way out of the prefix.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Route {
    /// Where to.
    #[serde(with = "super::block")]
    pub dst: IpNetwork,
    /// Through what; without, through the gateway of the container's address.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// The largest packet, bytes; 0 for the interface's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The largest TCP segment to announce, bytes; 0 for the kernel's choice.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// The metric; 0 for the kernel's choice.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table, if it is not the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's number for how far it reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// What a resolver should use.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of resolv.conf")]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "super::config::or_default")]
    pub nameservers: Vec<String>,
    #[serde(
        skip_serializing_if = "String::is_empty",
        deserialize_with = "super::config::or_default"
    )]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "super::config::or_default")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "super::config::or_default")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Route {
    /// A route with the kernel's choice of everything else.
    pub const fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Go writes an address that is not there as an empty text.
mod empty_is_none {
    use std::net::IpAddr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        address: &Option<IpAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        address.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => {
                let address: IpAddr = text.parse().map_err(D::Error::custom)?;
                Ok(Some(address.to_canonical()))
            }
        }
    }
}
