//! One entry of a registry, and what it says.

use std::time::Duration;

use flannel_core::{InvalidSubnetKey, Lease, LeaseError, NodeId, Subnet};

/// One entry under the network's leases, whether it is a lease or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// flannel's subnet key, such as `10.5.1.0-24`, without a prefix. Bytes that are not UTF-8 read as U+FFFD.
    pub key: String,
    /// flannel's lease JSON, byte for byte; or why it cannot be read. Bytes that are not UTF-8 read as U+FFFD, as Go reads
    /// them.
    pub value: Result<String, String>,
    /// The node that holds it, as the engine keeps it beside the value.
    pub owner: Option<NodeId>,
    /// When it was last written visibly.
    pub revision: u64,
    /// When its key came to be; 0 where the engine does not know. Of two records that overlap the older one counts.
    pub created: u64,
    /// Whether and when it goes away by itself.
    pub lifetime: Lifetime,
    /// For the engine alone, to find what belongs to the record, such as its etcd lease; 0 if there is nothing.
    pub token: u64,
}

/// Whether a record goes away by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lifetime {
    /// It goes away when its time is over, unless it is touched before.
    Bounded,
    /// Its time is over; its key may be taken.
    Lapsed,
    /// It stays: a reservation.
    Unbounded,
}

/// What to write into a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewRecord {
    /// flannel's lease JSON.
    pub value: String,
    /// The node that holds it from then on.
    pub owner: Option<NodeId>,
    /// How long it lasts from the write on; `None` makes it a reservation.
    pub ttl: Option<Duration>,
}

/// Why a record is not a lease.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Its key is not that of a subnet.
    #[error(transparent)]
    Key(#[from] InvalidSubnetKey),
    /// The engine cannot read it.
    #[error("cannot be read: {reason}")]
    Unreadable {
        /// Why.
        reason: String,
    },
    /// Its value is not that of a lease.
    #[error(transparent)]
    Value(#[from] LeaseError),
}

impl Record {
    /// The subnet that the key stands for; `None` if it is a stray key.
    pub fn subnet(&self) -> Option<Subnet> {
        self.key.parse().ok()
    }

    /// Whether the record and a live one at `key` would share an address. Keys in other spellings count, as they do for flannel;
    /// a record whose time is over and one at `key` itself do not.
    pub fn overlaps(&self, key: &str) -> bool {
        let subnets = || Subnet::of_any_spelling(&self.key).zip(Subnet::of_any_spelling(key));
        self.lifetime != Lifetime::Lapsed
            && self.key != key
            && subnets().is_some_and(|(one, other)| one.overlaps(&other))
    }

    /// The lease that the record holds. An owner that is an address is no name that lasts, and left out: the lease's public
    /// address says the same, and stays true when it changes.
    ///
    /// # Errors
    ///
    /// [`RecordError`] if it is something else.
    pub fn lease(&self) -> Result<Lease, RecordError> {
        let subnet = self.key.parse()?;
        let value = self
            .value
            .as_ref()
            .map_err(|reason| RecordError::Unreadable { reason: reason.clone() })?;
        let mut lease = Lease::new(subnet, value.parse()?);
        // A copy, because the owners of ten thousand records lie between their values: what is left of those is 1.5 MB of holes.
        let owner = self.owner.as_ref().filter(|owner| owner.address().is_none());
        lease.node = owner.and_then(|owner| NodeId::new(owner.as_str()).ok());
        Ok(lease)
    }

    /// Whether a watcher would tell the two apart.
    pub(crate) fn looks_like(&self, other: &Self) -> bool {
        (&self.value, &self.owner) == (&other.value, &other.owner)
            && self.revision == other.revision
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: &str, value: Result<&str, &str>) -> Record {
        Record {
            key: key.into(),
            value: value.map(Into::into).map_err(Into::into),
            owner: NodeId::new("n1").ok(),
            revision: 1,
            created: 1,
            lifetime: Lifetime::Bounded,
            token: 0,
        }
    }

    #[test]
    fn a_record_reads_as_a_lease_with_its_holder() {
        let lease = record("10.3.7.0-24", Ok(r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#));
        let lease = lease.lease().unwrap();
        assert_eq!(lease.subnet.to_string(), "10.3.7.0-24");
        assert_eq!(lease.attrs.to_string(), r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
        assert_eq!(lease.node.unwrap().as_str(), "n1");
    }

    #[test]
    fn what_is_no_lease_says_why() {
        let why = |key, value| record(key, value).lease().unwrap_err();
        assert!(matches!(why("config", Ok("{}")), RecordError::Key(_)));
        assert!(matches!(why("10.3.7.0-24", Ok("x")), RecordError::Value(_)));
        let unreadable = why("10.3.7.0-24", Err("it is a directory"));
        assert_eq!(unreadable.to_string(), "cannot be read: it is a directory");
    }

    proptest! {
        #[test]
        fn no_record_panics(
            key in "(10\\.3\\.[0-9]{1,3}\\.0-2[0-9]|\\PC{0,40})",
            value in "(\\{\"PublicIP\":\"[0-9.]{1,12}\"\\}|\\PC{0,80})",
        ) {
            if let Ok(lease) = record(&key, Ok(&value)).lease() {
                prop_assert_eq!(lease.subnet.to_string(), key);
            }
        }
    }
}
