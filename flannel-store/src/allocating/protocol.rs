//! The lease protocol: what a node asks its registry, and what it makes of the answers.
//!
//! Two state machines, [`Acquiring`] and [`Holding`]. Nothing here waits, reads a clock or draws a number, so that the store
//! and a model checker drive the same code. [`Allocating`](crate::Allocating) says what the protocol promises.

use std::time::Duration;

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, NetworkFull, NodeId, StoreError, Subnet};

use crate::{
    allocating::plan::{self, Decision},
    registry::{Lifetime, Record, Write},
};

/// What a node asks its registry; the methods of [`Registry`](crate::Registry) as values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Request {
    Create { key: String, write: Write },
    Delete(Record),
    List,
    Touch { was: Record, ttl: Option<Duration> },
    Update { was: Record, write: Write },
}

/// What a registry that works has answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// The record is not what the request says; this is there.
    Conflict(Option<Box<Record>>),
    Deleted,
    Listed(Vec<Record>),
    Written(Record),
}

/// Who wants a subnet, and what for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeker<'a> {
    pub(crate) config: &'a NetworkConfig,
    pub(crate) node: &'a NodeId,
    pub(crate) attrs: &'a LeaseAttrs,
    /// The text of `attrs`.
    pub(crate) value: &'a str,
    pub(crate) ttl: Duration,
    /// The subnet to prefer.
    pub(crate) hint: Option<Subnet>,
}

/// A node on its way to a lease. It begins with [`Request::List`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Acquiring {
    /// All records as far as the node knows.
    pub(crate) records: Vec<Record>,
    /// How often somebody else was faster since the last list.
    pub(crate) races_lost: u32,
}

/// What a node does after an answer on its way to a lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    Ask(Request),
    /// Nothing is free.
    Full(NetworkFull),
    /// The node holds this record.
    Held(Record),
    /// Waits a little, and then lists anew.
    ListAnew,
}

impl Acquiring {
    /// Takes the answer to what was asked last.
    ///
    /// Losing a race shows one record more, so that choosing again needs no new list; only a full network does.
    pub(crate) fn answered(&mut self, seeker: &Seeker<'_>, answer: Answer) -> Next {
        match answer {
            Answer::Conflict(Some(current)) => {
                self.races_lost += 1;
                self.records.retain(|record| record.key != current.key);
                self.records.push(*current);
            }
            Answer::Conflict(None) | Answer::Deleted => return Next::ListAnew,
            Answer::Listed(records) => *self = Self { records, races_lost: 0 },
            Answer::Written(record) => return Next::Held(record),
        }
        if self.races_lost >= RACES_PER_LIST {
            return Next::ListAnew;
        }
        let Seeker { config, node, attrs, hint, .. } = seeker;
        match plan::decide(config, &self.records, node, attrs, hint.as_ref()) {
            Ok(decision) => Next::Ask(request(decision, seeker)),
            Err(_) if self.races_lost > 0 => Next::ListAnew,
            Err(full) => Next::Full(full),
        }
    }
}

/// What carries out one decision; it conflicts if the registry has changed since.
fn request(decision: Decision<'_>, seeker: &Seeker<'_>) -> Request {
    let mut write = Write {
        value: seeker.value.into(),
        owner: Some(seeker.node.clone()),
        ttl: Some(seeker.ttl),
    };
    match decision {
        Decision::Create(subnet) => Request::Create { key: subnet.to_string(), write },
        Decision::Delete(record) => Request::Delete(record.clone()),
        Decision::Take(record) => {
            let was = record.clone();
            if was.lifetime == Lifetime::Unbounded {
                write.ttl = None;
            }
            if was.value.as_ref() == Ok(&write.value) && was.owner == write.owner {
                Request::Touch { was, ttl: write.ttl }
            } else {
                Request::Update { was, write }
            }
        }
    }
}

/// A node that holds a lease, as it last wrote it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Holding {
    pub(crate) node: NodeId,
    ttl: Duration,
    pub(crate) record: Record,
    lease: Lease,
    /// What we tried to publish without learning whether it was written.
    pub(crate) unanswered: Option<String>,
}

/// What a holder wants with its lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// To publish this text, which is that of a lease.
    Publish(String),
    Release,
    Renew,
}

impl Holding {
    /// `record` as `node` holds it.
    pub(crate) fn new(node: NodeId, ttl: Duration, record: Record) -> Result<Self, StoreError> {
        let lease = lease_of(&record)?;
        Ok(Self { node, ttl, record, lease, unanswered: None })
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// How long the lease lasts after a renewal; `None` if it is a reservation.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        (self.record.lifetime != Lifetime::Unbounded).then_some(self.ttl)
    }

    /// What to ask for `wish`: everything is compared with what we last wrote.
    pub(crate) fn ask(&mut self, wish: &Wish) -> Request {
        let was = self.record.clone();
        match wish {
            Wish::Publish(value) if self.record.value.as_ref() != Ok(value) => {
                self.unanswered = Some(value.clone());
                let owner = Some(self.node.clone());
                Request::Update {
                    was,
                    write: Write { value: value.clone(), owner, ttl: self.ttl() },
                }
            }
            Wish::Publish(_) | Wish::Renew => Request::Touch { was, ttl: self.ttl() },
            // A reservation was made by a person: it stays for the next node that has its address.
            Wish::Release if self.record.lifetime == Lifetime::Unbounded => {
                let write = Write { value: self.lease.attrs.to_string(), owner: None, ttl: None };
                Request::Update { was, write }
            }
            Wish::Release => Request::Delete(was),
        }
    }

    /// Takes the answer to what was asked for `wish`. Whether it is fulfilled; if not, it is to be asked again.
    ///
    /// [`StoreError::Revoked`] if the lease is lost. A conflict with what we wrote ourselves means that an answer was lost, and
    /// the holder goes on from there.
    pub(crate) fn answered(&mut self, wish: &Wish, answer: Answer) -> Result<bool, StoreError> {
        match answer {
            Answer::Written(record) => self.written(record)?,
            Answer::Deleted | Answer::Listed(_) => {}
            Answer::Conflict(Some(current)) if self.wrote(&current) => {
                return self.written(*current).map(|()| false);
            }
            Answer::Conflict(current) => {
                return Err(StoreError::Revoked {
                    subnet: self.lease.subnet,
                    owner: current.and_then(|record| holder(&record)),
                });
            }
        }
        if matches!(wish, Wish::Publish(value) if self.unanswered.as_ref() == Some(value)) {
            self.unanswered = None;
        }
        Ok(true)
    }

    /// Whether `current` is a later record of ours.
    fn wrote(&self, current: &Record) -> bool {
        let value = current.value.as_ref().ok();
        current.owner.as_ref() == Some(&self.node)
            && *current != self.record
            && value.is_some()
            && (value == self.record.value.as_ref().ok() || value == self.unanswered.as_ref())
    }

    fn written(&mut self, record: Record) -> Result<(), StoreError> {
        self.lease = lease_of(&record)?;
        self.record = record;
        Ok(())
    }
}

/// Who holds a record: its owner, or as with flannel whoever has its address.
fn holder(record: &Record) -> Option<NodeId> {
    let address = || record.lease().ok().and_then(|lease| lease.attrs.address());
    record.owner.clone().or_else(|| address().map(NodeId::from))
}

/// The lease in a record that we wrote ourselves.
fn lease_of(record: &Record) -> Result<Lease, StoreError> {
    record.lease().map_err(|source| StoreError::Unavailable {
        operation: format!("read back the lease of {}", record.key),
        source: source.into(),
    })
}

/// Enough for nodes that start together; whoever loses more often looks at the whole again.
const RACES_PER_LIST: u32 = 64;
