//! The last things that happened to the node, with their times, for operators.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::{Duration, SystemTime},
};

use flannel_core::{Fault, FaultKind, Status, Subnet};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use tokio::time::Instant;

/// The last things that happened, and what is the case now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    next_repair: u64,
    faults: Vec<Fault>,
    lacking: BTreeMap<&'static str, String>,
    /// What of that is lacking because the store does not answer.
    away: BTreeSet<&'static str>,
    subnet: Option<Subnet>,
    offline_since: Option<Instant>,
    outages: u64,
}

/// One thing that happened.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// When, to the millisecond.
    #[serde(serialize_with = "to_rfc3339", deserialize_with = "from_rfc3339")]
    pub at: SystemTime,
    /// What it is about.
    pub kind: Kind,
    /// What happened.
    pub text: String,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// Something does not work.
    Fault,
    /// The lease was taken, lost, or is another one.
    Lease,
    /// Something works again.
    Recovery,
    /// Somebody else's change was undone.
    Repair,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fault => "fault",
            Self::Lease => "lease",
            Self::Recovery => "recovery",
            Self::Repair => "repair",
        })
    }
}

impl Journal {
    /// Writes down what is new in `status`.
    pub(crate) fn follow(&mut self, status: &Status, at: SystemTime, now: Instant) {
        let subnet = status.lease.as_ref().map(|lease| lease.subnet);
        if subnet != self.subnet {
            let text = subnet.map_or_else(|| "lost".into(), |subnet| format!("holds {subnet}"));
            self.write(at, Kind::Lease, text);
            self.subnet = subnet;
        }
        for fault in &status.faults {
            if !self.faults.iter().any(|it| it.is_same(fault)) {
                self.write(at, Kind::Fault, fault.to_string());
            }
        }
        let does = |fault: &Fault| fault.operation.clone();
        let goes_on =
            |operation: &String| status.faults.iter().any(|it| it.operation == *operation);
        let over: BTreeSet<_> = self.faults.iter().map(does).filter(|it| !goes_on(it)).collect();
        for operation in over {
            self.write(at, Kind::Recovery, format!("can {operation}"));
        }
        self.faults.clone_from(&status.faults);
        for repair in status.repairs.iter().filter(|repair| repair.number >= self.next_repair) {
            self.entries.push_back(Entry { at, kind: Kind::Repair, text: repair.what.clone() });
        }
        self.next_repair = status.repairs.back().map_or(self.next_repair, |last| last.number + 1);
        self.trim();
        self.watch_store(now);
    }

    /// Writes down that something needed before there can be a node is not to be had, or is again.
    pub(crate) fn lack(
        &mut self,
        what: &'static str,
        reason: Option<&str>,
        store_is_away: bool,
        at: SystemTime,
        now: Instant,
    ) {
        match reason {
            Some(reason) if self.lacking.get(what).is_none_or(|before| before != reason) => {
                self.write(at, Kind::Fault, format!("cannot {what}: {reason}"));
                self.lacking.insert(what, reason.into());
            }
            Some(_) => {}
            None => {
                if self.lacking.remove(what).is_some() {
                    self.write(at, Kind::Recovery, format!("can {what}"));
                }
            }
        }
        match store_is_away {
            true => self.away.insert(what),
            false => self.away.remove(what),
        };
        self.watch_store(now);
    }

    /// The last entries, oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// How long the store has not answered, if it does not.
    pub(crate) fn offline(&self, now: Instant) -> Option<Duration> {
        self.offline_since.map(|since| now.saturating_duration_since(since))
    }

    /// How often the store did not answer, for however long.
    pub(crate) fn outages(&self) -> u64 {
        self.outages
    }

    fn watch_store(&mut self, now: Instant) {
        // A store that says no has answered.
        let offline = self.faults.iter().any(|fault| fault.kind == FaultKind::StoreAway)
            || !self.away.is_empty();
        match (offline, self.offline_since) {
            (true, None) => {
                self.offline_since = Some(now);
                self.outages += 1;
            }
            (false, Some(_)) => self.offline_since = None,
            _ => {}
        }
    }

    fn write(&mut self, at: SystemTime, kind: Kind, text: String) {
        self.entries.push_back(Entry { at, kind, text });
        self.trim();
    }

    fn trim(&mut self) {
        let surplus = self.entries.len().saturating_sub(KEPT);
        self.entries.drain(..surplus);
    }
}

fn to_rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}

fn from_rfc3339<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_rfc3339(&text).map_err(D::Error::custom)
}

/// What is done before there is a node.
pub(crate) const FIND_UPLINK: &str = "find the uplink";
pub(crate) const READ_CONFIG: &str = "read the network config";
pub(crate) const READ_NODE: &str = "read the node";
pub(crate) const SET_UP_NETWORK: &str = "set up the network";

/// How many entries are kept: a page.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use flannel_core::{Activity, Lease, LeaseAttrs};

    use super::*;

    fn fault(activity: Activity, reason: &str) -> Fault {
        let fault = Fault::new(FaultKind::StoreAway, "store", activity.to_string(), reason);
        fault.during(activity)
    }

    fn texts(journal: &Journal) -> Vec<&str> {
        journal.entries().map(|entry| entry.text.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_written_down_once() {
        let (mut journal, mut status) = (Journal::default(), Status::default());
        let mut follow = |status: &Status| {
            for _ in 0..2 {
                journal.follow(status, SystemTime::UNIX_EPOCH, Instant::now());
            }
            texts(&journal).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(follow(&status).is_empty());
        status.lease = Some(Lease::new("10.3.1.0-24".parse().unwrap(), LeaseAttrs::default()));
        status.faults.push(fault(Activity::Watch, "refused"));
        assert_eq!(follow(&status), ["holds 10.3.1.0-24", "cannot watch leases: refused"]);
        status.faults.clear();
        status.lease = None;
        assert_eq!(follow(&status)[2..], ["lost", "can watch leases"]);
        status.faults.push(fault(Activity::Sync, "no"));
        assert_eq!(follow(&status)[4..], ["cannot sync the data path: no"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_from_the_first_failure_of_the_store_to_the_last() {
        let (mut journal, mut status) = (Journal::default(), Status::default());
        let at = SystemTime::UNIX_EPOCH;
        journal.lack(FIND_UPLINK, Some("no interface"), false, at, Instant::now());
        journal.lack(READ_CONFIG, Some("there is none"), false, at, Instant::now());
        assert_eq!((journal.offline(Instant::now()), journal.outages()), (None, 0));
        journal.lack(READ_CONFIG, Some("refused"), true, at, Instant::now());
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(journal.offline(Instant::now()), Some(Duration::from_secs(7)));
        status.faults.push(fault(Activity::Renew, "refused"));
        journal.follow(&status, at, Instant::now());
        journal.lack(READ_CONFIG, None, false, at, Instant::now());
        assert_eq!(journal.offline(Instant::now()), Some(Duration::from_secs(7)), "one outage");
        // These stay until somebody does something, and the store answers meanwhile.
        let answered = [FaultKind::ConfigChanged, FaultKind::NetworkFull, FaultKind::LeaseLost];
        status.faults = answered
            .map(|kind| {
                Fault::new(kind, "config", "follow the config", "no").during(Activity::Config)
            })
            .into();
        journal.follow(&status, at, Instant::now());
        assert_eq!((journal.offline(Instant::now()), journal.outages()), (None, 1));
        status.faults.clear();
        journal.follow(&status, at, Instant::now());
        assert_eq!((journal.offline(Instant::now()), journal.outages()), (None, 1));
    }

    #[test]
    fn a_journal_keeps_its_last_page() {
        let mut journal = Journal::default();
        for number in 0..200 {
            journal.write(SystemTime::UNIX_EPOCH, Kind::Fault, number.to_string());
        }
        assert_eq!(texts(&journal).len(), KEPT);
        assert_eq!(texts(&journal).last(), Some(&"199"));
        let json = serde_json::to_string(journal.entries().next().unwrap()).unwrap();
        assert_eq!(json, r#"{"at":"1970-01-01T00:00:00.000Z","kind":"fault","text":"136"}"#);
    }
}
