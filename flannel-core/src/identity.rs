//! Who a node is, apart from its addresses.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A node's name in the store: what makes a lease ours after our address changed.
///
/// Printable ASCII without white space, 1 to 253 characters, so that it fits file names, keys and logs. Two nodes of one network
/// must not share one. Cloning costs a reference count. Where nothing better is configured, a node's public address serves, which is how flannel tells nodes apart.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

/// A text that cannot name a node.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} cannot be a node id: use 1 to 253 printable ASCII characters without spaces")]
pub struct InvalidNodeId {
    text: String,
}

impl NodeId {
    /// Takes `text` as a node's name.
    ///
    /// # Errors
    ///
    /// [`InvalidNodeId`] if it is empty, too long, or has other characters than printable ASCII.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, InvalidNodeId> {
        let text = text.into();
        if (1..=253).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(InvalidNodeId { text: crate::fields::shorten(&text) })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address that this name is; `None` for a name of another kind.
    ///
    /// An address names a node only as long as the node has it: another node may get it later.
    pub fn address(&self) -> Option<std::net::IpAddr> {
        self.0.parse().ok()
    }

    /// A number that depends on the name alone, the same on every machine and in every release: nodes use it to spread out.
    pub fn spread(&self) -> u128 {
        let half = |seed: u64| {
            // FNV-1a for the bytes (offset and prime of the 64-bit variant), then the finalizer of MurmurHash3, because names such
            // as n1 and n2 differ in their last byte only and FNV alone leaves them close together.
            let mut hash = self.0.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
            hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            hash ^ (hash >> 33)
        };
        u128::from(half(0)) | u128::from(half(0x9e37_79b9_7f4a_7c15)) << 64
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.as_str().into()
    }
}

impl From<std::net::IpAddr> for NodeId {
    /// A public address as a name: flannel's own way to tell nodes apart.
    fn from(address: std::net::IpAddr) -> Self {
        Self(address.to_string().into())
    }
}

impl std::str::FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        Self::new(text)
    }
}

impl TryFrom<String> for NodeId {
    type Error = InvalidNodeId;

    fn try_from(text: String) -> Result<Self, InvalidNodeId> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_keys_or_logs_are_refused() {
        for text in ["", "a b", "a\n", "ü", &"x".repeat(254)] {
            assert!(NodeId::new(text).is_err(), "{text}");
        }
        let id = NodeId::new("worker-7.rack_2").unwrap();
        assert_eq!(id.as_str(), "worker-7.rack_2");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!((&*json, serde_json::from_str(&json).ok()), (r#""worker-7.rack_2""#, Some(id)));
    }

    #[test]
    fn a_name_that_is_an_address_is_told_from_others() {
        for address in ["192.0.2.1", "fd00::1"] {
            let address = address.parse::<std::net::IpAddr>().unwrap();
            assert_eq!(NodeId::from(address).address(), Some(address));
        }
        assert_eq!(NodeId::new("192-0-2-1").unwrap().address(), None);
    }

    #[test]
    fn the_spread_of_a_name_never_changes() {
        for (name, spread) in [
            ("n1", "d54dff04e03b4a3ef5c08557ac1e5104"),
            ("worker-1", "ab341e81cfc4438f47e73c9b4c3c6e74"),
        ] {
            assert_eq!(format!("{:032x}", NodeId::new(name).unwrap().spread()), spread, "{name}");
        }
    }
}
