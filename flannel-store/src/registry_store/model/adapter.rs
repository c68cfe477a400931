//! The real protocol on the model's values.

use std::{cell::RefCell, collections::HashMap, time::Duration};

use flannel_core::{LeaseAttrs, NetworkConfig, NodeId, StoreError, Subnet};

use super::world::{Answer, Held, Lapsed, LeaseOp, Own, Request, SUBNETS, Seen, View};
use crate::{
    registry::{Lifetime, Record},
    registry_store::protocol::{self, Acquiring, Candidate, Holding, Next},
};

/// What [`Adapter::acquired`] depends on.
type Acquisition = (View, u8, Option<u8>, u8, u8, Answer);

/// What a holder makes of an answer, and whether the op is fulfilled; `None` if the lease is lost.
type Heard = Option<(Held, bool)>;

/// The protocol as any one node runs it. What it does depends on its arguments alone, so that each answer is worked out once.
pub(super) struct Adapter {
    configs: Vec<NetworkConfig>,
    subnets: [Subnet; SUBNETS],
    me: NodeId,
    other: NodeId,
    acquired: RefCell<HashMap<Acquisition, Acquired>>,
    asked: RefCell<HashMap<(Held, LeaseOp), (Held, Request)>>,
    answered: RefCell<HashMap<(Held, LeaseOp, Answer), Heard>>,
}

/// What a node does next on its way to a lease.
#[derive(Clone, Copy, Debug)]
pub(super) enum Acquired {
    Ask { view: View, races: u8, request: Request },
    Full,
    Held(Held),
    ListAnew,
}

pub(super) const TTL: Duration = Duration::from_secs(300);

impl Adapter {
    /// All nodes want the same subnet first, which is the worst that can happen. Where subnets are `mixed`, some nodes have read
    /// another length, and some are dual stack.
    pub(super) fn new(mixed: bool) -> Self {
        let (configs, subnets): (&[&str], _) = match mixed {
            false => (
                &[r#"{"Network":"10.3.0.0/28"}"#],
                ["10.3.0.4-30", "10.3.0.8-30", "10.3.0.12-30", "10.3.0.16-30"],
            ),
            true => (
                &[
                    r#"{"Network":"10.3.0.0/27","SubnetLen":30,"SubnetMin":"10.3.0.8","SubnetMax":"10.3.0.12"}"#,
                    r#"{"Network":"10.3.0.0/27","SubnetLen":29,"SubnetMin":"10.3.0.8","SubnetMax":"10.3.0.8"}"#,
                    r#"{"Network":"10.3.0.0/27","SubnetLen":30,"SubnetMin":"10.3.0.8","SubnetMax":"10.3.0.8",
                        "EnableIPv6":true,"IPv6Network":"fd00::/124","IPv6SubnetLen":126,
                        "IPv6SubnetMin":"fd00::4","IPv6SubnetMax":"fd00::4"}"#,
                ],
                ["10.3.0.8-30", "10.3.0.12-30", "10.3.0.8-29", "10.3.0.8-30&fd00::4-126"],
            ),
        };
        Self {
            configs: configs.iter().map(|json| json.parse().unwrap()).collect(),
            subnets: subnets.map(|key| key.parse().unwrap()),
            me: "me".parse().unwrap(),
            other: "other".parse().unwrap(),
            acquired: RefCell::default(),
            asked: RefCell::default(),
            answered: RefCell::default(),
        }
    }

    /// [`Acquiring::answered`].
    pub(super) fn acquired(
        &self,
        (view, races): (View, u8),
        (hint, text, config): (Option<u8>, u8, u8),
        answer: Answer,
    ) -> Acquired {
        let work = || {
            let attrs = attrs(text);
            let value = attrs.to_string();
            let candidate = Candidate {
                config: &self.configs[usize::from(config)],
                node: &self.me,
                attrs: &attrs,
                value: &value,
                ttl: TTL,
                hint: hint.map(|at| self.subnet(at)),
            };
            let mut acquiring = Acquiring {
                records: self.records(&view),
                races_lost: races.into(),
                in_use: Vec::new(),
            };
            match acquiring.answered(&candidate, self.answer(answer)) {
                Next::Ask(request) => Acquired::Ask {
                    view: self.view(&acquiring.records),
                    // That there is an end to it is not modelled.
                    races: acquiring.races_lost.min(1) as u8,
                    request: self.request(request),
                },
                Next::Full(_) => Acquired::Full,
                Next::Held(record) => {
                    let held = Holding::new(self.me.clone(), TTL, record).unwrap();
                    Acquired::Held(self.held(&held))
                }
                Next::ListAnew => Acquired::ListAnew,
            }
        };
        let key = (view, races, hint, text, config, answer);
        *self.acquired.borrow_mut().entry(key).or_insert_with(work)
    }

    /// [`Holding::ask`].
    pub(super) fn asked(&self, held: Held, op: LeaseOp) -> (Held, Request) {
        let work = || {
            let mut holding = self.holding(held);
            let request = holding.ask(&real(op));
            (self.held(&holding), self.request(request))
        };
        *self.asked.borrow_mut().entry((held, op)).or_insert_with(work)
    }

    /// [`Holding::answered`]; `None` if the lease is lost.
    pub(super) fn answered(&self, held: Held, op: LeaseOp, answer: Answer) -> Heard {
        let work = || {
            let mut holding = self.holding(held);
            match holding.answered(&real(op), self.answer(answer)) {
                Ok(done) => Some((self.held(&holding), done)),
                Err(StoreError::Revoked { .. }) => None,
                Err(error) => panic!("{error}"),
            }
        };
        *self.answered.borrow_mut().entry((held, op, answer)).or_insert_with(work)
    }

    fn subnet(&self, at: u8) -> Subnet {
        self.subnets[usize::from(at)]
    }

    fn slot(&self, key: &str) -> u8 {
        (0..SUBNETS as u8).find(|at| self.subnet(*at).to_string() == key).unwrap()
    }

    pub(super) fn overlap(&self, one: usize, other: usize) -> bool {
        one != other && self.subnets[one].overlaps(&self.subnets[other])
    }

    /// The keys that a node with configuration `config` may have.
    pub(super) fn admits(&self, config: u8, at: usize) -> bool {
        self.configs[usize::from(config)].admits(&self.subnets[at])
    }

    pub(super) fn config_count(&self) -> usize {
        self.configs.len()
    }

    fn holding(&self, held: Held) -> Holding {
        let record = self.record(held.subnet, held.own);
        let mut holding = Holding::new(self.me.clone(), TTL, record).unwrap();
        holding.unanswered =
            (0..8).filter(|text| held.unanswered >> text & 1 == 1).map(value).collect();
        holding.challenged = held.challenged;
        holding.overlapped = held.overlapped;
        holding.yields_to = held.yields.then_some(None);
        holding
    }

    fn held(&self, holding: &Holding) -> Held {
        Held {
            subnet: self.slot(&holding.record.key),
            own: own(&holding.record),
            unanswered: holding.unanswered.iter().fold(0, |bits, value| bits | 1 << text(value)),
            challenged: holding.challenged,
            overlapped: holding.overlapped,
            yields: holding.yields_to.is_some(),
        }
    }

    fn record(&self, at: u8, own: Own) -> Record {
        Record {
            key: self.subnet(at).to_string(),
            value: Ok(value(own.text)),
            owner: Some(self.me.clone()),
            revision: own.revision.into(),
            created: own.created.into(),
            lifetime: Lifetime::Bounded,
            token: 0,
        }
    }

    fn seen(&self, at: u8, seen: Seen) -> Option<Record> {
        let (mut record, Lapsed(lapsed)) = match seen {
            Seen::Nothing => return None,
            Seen::Own(own, lapsed) => (self.record(at, own), lapsed),
            Seen::Theirs(lapsed) => {
                let record = self.record(at, Own { revision: 0, created: 0, text: 9 });
                (Record { owner: Some(self.other.clone()), ..record }, lapsed)
            }
            Seen::Overlapping { created, named, lapsed } => {
                let record = self.record(at, Own { revision: 0, created, text: 9 });
                let owner = named.then(|| self.other.clone());
                (Record { owner, ..record }, lapsed)
            }
        };
        if lapsed {
            record.lifetime = Lifetime::Lapsed;
        }
        Some(record)
    }

    fn records(&self, view: &View) -> Vec<Record> {
        (0..).zip(view).filter_map(|(at, seen)| self.seen(at, *seen)).collect()
    }

    fn view(&self, records: &[Record]) -> View {
        let mut view = [Seen::Nothing; SUBNETS];
        for record in records {
            let lapsed = Lapsed(record.lifetime == Lifetime::Lapsed);
            view[usize::from(self.slot(&record.key))] = match &record.owner {
                Some(owner) if *owner == self.me => Seen::Own(own(record), lapsed),
                owner if self.configs.len() > 1 => Seen::Overlapping {
                    created: record.created as u8,
                    named: owner.is_some(),
                    lapsed,
                },
                _ => Seen::Theirs(lapsed),
            };
        }
        view
    }

    fn answer(&self, answer: Answer) -> protocol::Answer {
        match answer {
            Answer::Conflict(at, seen) => {
                protocol::Answer::Conflict(self.seen(at, seen).map(Box::new))
            }
            Answer::Created(..) => unreachable!("the engine verifies it"),
            Answer::Deleted => protocol::Answer::Deleted,
            Answer::Listed(view) => protocol::Answer::Listed(self.records(&view)),
            Answer::Written(at, own) => protocol::Answer::Written(self.record(at, own)),
        }
    }

    fn request(&self, request: protocol::Request) -> Request {
        let place = |was: &Record| (self.slot(&was.key), own(was));
        match request {
            protocol::Request::Create { key, write } => {
                Request::Create(self.slot(&key), text(&write.value))
            }
            protocol::Request::Delete(was) => {
                let (at, own) = place(&was);
                Request::Delete(at, own)
            }
            protocol::Request::List => Request::List,
            protocol::Request::Touch { was, .. } => {
                let (at, own) = place(&was);
                Request::Touch(at, own)
            }
            protocol::Request::Update { was, write } => {
                let (at, own) = place(&was);
                Request::Update(at, own, text(&write.value))
            }
        }
    }
}

fn real(op: LeaseOp) -> protocol::LeaseOp {
    match op {
        LeaseOp::Publish(text) => protocol::LeaseOp::Publish(value(text)),
        LeaseOp::Release => protocol::LeaseOp::Release,
        LeaseOp::Renew => protocol::LeaseOp::Renew,
    }
}

fn attrs(text: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, text + 1].into()), ..LeaseAttrs::default() }
}

fn value(text: u8) -> String {
    attrs(text).to_string()
}

fn text(value: &str) -> u8 {
    let attrs: LeaseAttrs = value.parse().unwrap();
    attrs.public_ip.unwrap().octets()[3] - 1
}

fn own(record: &Record) -> Own {
    Own {
        revision: record.revision as u8,
        created: record.created as u8,
        text: text(record.value.as_ref().unwrap()),
    }
}
