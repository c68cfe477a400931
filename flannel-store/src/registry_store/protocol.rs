//! The lease protocol: what a node asks its registry, and what it makes of the answers.
//!
//! Two state machines, [`Acquiring`] and [`Holding`]. Nothing here waits, reads a clock or draws a number, so that the store
//! and a model checker drive the same code. [`RegistryStore`](crate::RegistryStore) says what the protocol promises.

use std::time::Duration;

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, NetworkFull, NodeId, StoreError, Subnet};

use crate::{
    registry::{Lifetime, NewRecord, Record},
    registry_store::plan::{self, Decision},
};

/// What a node asks its registry; the methods of [`Registry`](crate::Registry) as values.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Request {
    Create { key: String, write: NewRecord },
    Delete(Record),
    List,
    Touch { was: Record, ttl: Option<Duration> },
    Update { was: Record, write: NewRecord },
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
pub(crate) struct Candidate<'a> {
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
    /// The keys of leases at our address whose holders have answered.
    pub(crate) in_use: Vec<String>,
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
    pub(crate) fn answered(&mut self, candidate: &Candidate<'_>, answer: Answer) -> Next {
        let mut seen_alone = None;
        match answer {
            Answer::Conflict(Some(current)) => {
                self.races_lost += 1;
                seen_alone = Some(current.key.clone());
                self.records.retain(|record| record.key != current.key);
                self.records.push(*current);
            }
            Answer::Conflict(None) | Answer::Deleted => return Next::ListAnew,
            Answer::Listed(records) => (self.records, self.races_lost) = (records, 0),
            Answer::Written(record) => return Next::Held(record),
        }
        if self.races_lost >= RACES_PER_LIST {
            return Next::ListAnew;
        }
        let Candidate { config, node, attrs, hint, .. } = candidate;
        match plan::decide(config, &self.records, node, attrs, hint.as_ref(), &self.in_use) {
            // An earlier attempt may have come late, and where keys alone are compared, nobody has looked yet at what is older than
            // that and overlaps it. A list that has it has those too.
            Ok(Decision::Take(record)) if seen_alone.as_ref() == Some(&record.key) => {
                Next::ListAnew
            }
            Ok(decision) => Next::Ask(request(decision, candidate)),
            Err(_) if self.races_lost > 0 => Next::ListAnew,
            Err(full) => Next::Full(full),
        }
    }
}

/// What carries out one decision; it conflicts if the registry has changed since.
fn request(decision: Decision<'_>, candidate: &Candidate<'_>) -> Request {
    let mut write = NewRecord {
        value: candidate.value.into(),
        owner: Some(candidate.node.clone()),
        ttl: Some(candidate.ttl),
    };
    match decision {
        Decision::Create(subnet) => Request::Create { key: subnet.to_string(), write },
        Decision::Delete(record) => Request::Delete(record.clone()),
        Decision::Take(record) => {
            if record.lifetime == Lifetime::Unbounded {
                write.ttl = None;
            }
            // Also if it says what we want already. What an earlier run of this node asked for, such as a release, may still be
            // on its way; it was for the record as it was.
            Request::Update { was: record.clone(), write }
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
    /// What we tried to publish, each value once, without learning whether it was written.
    pub(crate) unanswered: Vec<String>,
    /// Whether somebody with our name has written our lease as it was: who wants to know whether we live. Writing it anew is
    /// the answer.
    pub(crate) challenged: bool,
    /// Whether a lease was seen that overlaps ours: who has to move is found out before anything else.
    pub(crate) overlapped: bool,
    /// Our lease is being removed, because this node has its addresses or some of them.
    pub(crate) yields_to: Option<Option<NodeId>>,
}

/// What a holder wants with its lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum LeaseOp {
    /// To publish this text, which is that of a lease.
    Publish(String),
    Release,
    Renew,
}

impl Holding {
    /// `record` as `node` holds it.
    pub(crate) fn new(node: NodeId, ttl: Duration, record: Record) -> Result<Self, StoreError> {
        let lease = lease_of(&record)?;
        Ok(Self {
            node,
            ttl,
            record,
            lease,
            unanswered: Vec::new(),
            challenged: false,
            overlapped: false,
            yields_to: None,
        })
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// How long the lease lasts after a renewal; `None` if it is a reservation.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        (self.record.lifetime != Lifetime::Unbounded).then_some(self.ttl)
    }

    /// What to ask for `op`: everything is compared with what we last wrote.
    pub(crate) fn ask(&mut self, op: &LeaseOp) -> Request {
        let was = self.record.clone();
        match op {
            _ if self.yields_to.is_some() => Request::Delete(was),
            LeaseOp::Publish(_) | LeaseOp::Renew if self.overlapped => Request::List,
            LeaseOp::Publish(value) if self.record.value.as_ref() != Ok(value) => {
                if !self.unanswered.contains(value) {
                    self.unanswered.push(value.clone());
                }
                let owner = Some(self.node.clone());
                Request::Update {
                    was,
                    write: NewRecord { value: value.clone(), owner, ttl: self.ttl() },
                }
            }
            LeaseOp::Publish(_) | LeaseOp::Renew if self.challenged => {
                Request::Update { write: as_it_is(&was, self.ttl()), was }
            }
            LeaseOp::Publish(_) | LeaseOp::Renew => Request::Touch { was, ttl: self.ttl() },
            // A reservation was made by a person: it stays for the next node that has its address.
            LeaseOp::Release if self.record.lifetime == Lifetime::Unbounded => {
                let write =
                    NewRecord { value: self.lease.attrs.to_string(), owner: None, ttl: None };
                Request::Update { was, write }
            }
            LeaseOp::Release => Request::Delete(was),
        }
    }

    /// Takes the answer to what was asked for `op`. Whether it is fulfilled; if not, it is to be asked again.
    ///
    /// [`StoreError::Revoked`] if the lease is lost. A conflict with what we wrote ourselves means that an answer was lost, and
    /// the holder goes on from there.
    pub(crate) fn answered(&mut self, op: &LeaseOp, answer: Answer) -> Result<bool, StoreError> {
        match answer {
            Answer::Written(record) => {
                self.written(record)?;
                self.challenged = false;
            }
            Answer::Listed(records) => {
                self.overlapped = false;
                let Some(winner) = plan::winner(&self.record, &records) else { return Ok(false) };
                let owner = holder(winner);
                // A reservation was made by a person, who has to settle it.
                if self.record.lifetime == Lifetime::Unbounded {
                    return Err(StoreError::Revoked { subnet: self.lease.subnet, owner });
                }
                self.yields_to = Some(owner);
                return Ok(false);
            }
            Answer::Deleted => {
                if let Some(owner) = self.yields_to.take() {
                    return Err(StoreError::Revoked { subnet: self.lease.subnet, owner });
                }
            }
            Answer::Conflict(Some(current)) if self.wrote(&current) => {
                let ours = |value| self.unanswered.contains(value);
                self.challenged |= !current.value.as_ref().is_ok_and(ours);
                return self.written(*current).map(|()| false);
            }
            Answer::Conflict(current) => {
                return Err(StoreError::Revoked {
                    subnet: self.lease.subnet,
                    owner: current.and_then(|record| holder(&record)),
                });
            }
        }
        if matches!(op, LeaseOp::Publish(_)) {
            self.unanswered.clear();
        }
        Ok(true)
    }

    /// Whether `current` is a later record of ours, or of somebody with our name who changed nothing. One that came to be after
    /// ours is another lease: a create of ours that was late, after ours had gone, and somebody may have its addresses.
    fn wrote(&self, current: &Record) -> bool {
        let Ok(value) = &current.value else { return false };
        current.key == self.record.key
            && current.created <= self.record.revision
            && current.owner == self.record.owner
            && *current != self.record
            && (self.record.value.as_ref() == Ok(value) || self.unanswered.contains(value))
    }

    fn written(&mut self, record: Record) -> Result<(), StoreError> {
        self.lease = lease_of(&record)?;
        self.record = record;
        Ok(())
    }
}

/// What writes a record as it is: only its revision is another then.
pub(crate) fn as_it_is(was: &Record, ttl: Option<Duration>) -> NewRecord {
    let value = was.value.clone().unwrap_or_default();
    NewRecord { value, owner: was.owner.clone(), ttl }
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

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;

    fn record(revision: u64, lifetime: Lifetime) -> Record {
        Record {
            key: "10.3.0.4-30".into(),
            value: Ok(VALUE.into()),
            owner: NodeId::new("n1").ok(),
            revision,
            created: 1,
            lifetime,
            token: 0,
        }
    }

    #[test]
    fn an_own_lease_is_written_anew_so_that_an_earlier_release_cannot_remove_it() {
        let config: NetworkConfig = r#"{"Network":"10.3.0.0/28"}"#.parse().unwrap();
        let (node, attrs) = ("n1".parse().unwrap(), VALUE.parse().unwrap());
        let ttl = Duration::from_secs(60);
        let candidate = Candidate {
            config: &config,
            node: &node,
            attrs: &attrs,
            value: VALUE,
            ttl,
            hint: None,
        };
        for (lifetime, ttl) in [(Lifetime::Bounded, Some(ttl)), (Lifetime::Unbounded, None)] {
            let was = record(7, lifetime);
            let next = Acquiring::default().answered(&candidate, Answer::Listed(vec![was.clone()]));
            let write = NewRecord { value: VALUE.into(), owner: Some(node.clone()), ttl };
            assert_eq!(next, Next::Ask(Request::Update { was, write }));
        }
    }

    #[test]
    fn a_holder_answers_who_asks_whether_it_lives() {
        let was = record(7, Lifetime::Bounded);
        let ttl = Duration::from_secs(60);
        let mut holding = Holding::new("n1".parse().unwrap(), ttl, was).unwrap();
        let question = record(8, Lifetime::Bounded);
        let answer = Answer::Conflict(Some(Box::new(question.clone())));
        assert!(!holding.answered(&LeaseOp::Renew, answer).unwrap());
        let write =
            NewRecord { value: VALUE.into(), owner: question.owner.clone(), ttl: Some(ttl) };
        assert_eq!(holding.ask(&LeaseOp::Renew), Request::Update { was: question, write });
        let written = Answer::Written(record(9, Lifetime::Bounded));
        assert!(holding.answered(&LeaseOp::Renew, written).unwrap());
        assert!(matches!(holding.ask(&LeaseOp::Renew), Request::Touch { .. }), "once");
    }

    #[test]
    fn a_holder_goes_on_from_what_it_wrote_and_from_nothing_else() {
        let holding = |unanswered: Option<&str>| {
            let record = record(7, Lifetime::Bounded);
            let mut holding =
                Holding::new("n1".parse().unwrap(), Duration::from_secs(60), record).unwrap();
            holding.unanswered = unanswered.into_iter().map(Into::into).collect();
            holding
        };
        let mut lost = record(8, Lifetime::Bounded);
        let new = VALUE.replace("192.0.2.1", "192.0.2.2");
        lost.value = Ok(new.clone());
        let answer = Answer::Conflict(Some(Box::new(lost.clone())));
        assert!(holding(None).answered(&LeaseOp::Renew, answer.clone()).is_err());
        let mut ours = holding(Some(&new));
        assert!(!ours.answered(&LeaseOp::Renew, answer).unwrap());
        assert_eq!(ours.record, lost);
        assert!(matches!(ours.ask(&LeaseOp::Renew), Request::Touch { .. }), "it wrote that itself");
        let stranger = Record { owner: NodeId::new("n2").ok(), ..lost };
        let answer = Answer::Conflict(Some(Box::new(stranger)));
        let error = holding(Some(&new)).answered(&LeaseOp::Renew, answer).unwrap_err();
        assert_eq!(error.to_string(), "n2 has the lease of 10.3.0.4-30 now");
    }
}
