//! Whether this node can serve pods, and what is missing: a plain function of what is known.

use std::{collections::BTreeMap, fmt};

use flannel_core::{Activity, Fault, FaultKind, PeerFault, PeerProblem, Status};
use flannel_firewall::FIREWALL;
use serde::{Deserialize, Serialize};

/// What the judgement is made of.
pub(crate) struct View<'a> {
    /// What is needed before there can be a node and is not to be had, with the reason.
    pub(crate) lacking: &'a BTreeMap<&'static str, String>,
    /// The node, if there is one.
    pub(crate) status: Option<&'a Status>,
    /// `subnet.env`.
    pub(crate) file: File,
}

/// `subnet.env`, compared with what should be in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum File {
    Different,
    Exact,
    Missing,
    /// There is nothing to be told yet.
    NotDue,
}

/// The judgement.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Readiness {
    /// What is missing, by part; empty if the node is ready.
    pub missing: Vec<String>,
    /// What is not as it should be and keeps no pod from working.
    pub notes: Vec<String>,
}

/// The judgement as CNI plugins read it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReadinessReport {
    pub(crate) ready: bool,
    #[serde(flatten)]
    pub(crate) readiness: Readiness,
    /// For how long the node has not been ready; `None` if it is, or never was.
    pub(crate) not_ready_seconds: Option<u64>,
}

impl Readiness {
    /// Whether pods can be served.
    pub fn is_ready(&self) -> bool {
        self.missing.is_empty()
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flannel-node is {}ready", if self.is_ready() { "" } else { "not " })?;
        for line in self.missing.iter().chain(&self.notes) {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// The judgement on `view`.
pub(crate) fn judge(view: &View<'_>) -> Readiness {
    let mut readiness = Readiness::default();
    let missing = &mut readiness.missing;
    missing.extend(
        view.lacking.iter().map(|(what, reason)| format!("start: cannot {what}: {reason}")),
    );
    let Some(status) = view.status else {
        if missing.is_empty() {
            missing.push("start: the node is being set up".into());
        }
        return readiness;
    };
    let because = |activities: &[Activity]| {
        let faults = activities.iter().filter_map(|activity| status.fault(*activity));
        faults.map(|fault| format!(": {fault}")).collect::<String>()
    };
    if status.lease.is_none() {
        let reasons =
            because(&[Activity::Config, Activity::Advertise, Activity::Acquire, Activity::Renew]);
        missing.push(format!("lease: none is held{reasons}"));
    } else if !status.trusts_lease() {
        missing.push(format!(
            "lease: somebody else may have it{}",
            because(&[Activity::Hold, Activity::Renew])
        ));
    }
    if status.peers.is_none() {
        missing.push(format!(
            "store: the leases of others are not known yet{}",
            because(&[Activity::Watch])
        ));
    }
    let of_data_path = |fault: &&Fault| {
        matches!(fault.activity, Activity::Start | Activity::Sync) && !fault.kind.is_partial()
    };
    let faults: Vec<_> = status.faults.iter().filter(of_data_path).collect();
    missing.extend(faults.iter().filter(|fault| fault.object == FIREWALL).map(named_fault));
    let others: Vec<_> = faults.iter().filter(|fault| fault.object != FIREWALL).collect();
    // Rules that are missing count as out of sync too.
    if !status.in_sync && (!others.is_empty() || faults.is_empty()) {
        let reasons: String = others.iter().map(|fault| format!(": {fault}")).collect();
        missing.push(format!("data path: not up to date{reasons}"));
    }
    missing.extend(refused_by_the_kernel(status));
    match view.file {
        File::Exact => {}
        File::Missing => missing.push("subnet.env: not there".into()),
        File::Different => missing.push("subnet.env: says something else".into()),
        // What keeps it from being due is named above.
        File::NotDue if missing.is_empty() => missing.push("subnet.env: not written yet".into()),
        File::NotDue => {}
    }
    if readiness.missing.is_empty() {
        let offline =
            [Activity::Watch, Activity::Renew].iter().any(|it| status.fault(*it).is_some());
        if offline {
            let reasons = because(&[Activity::Watch, Activity::Renew]);
            readiness.notes.push(format!("store: offline, the data path stays as it is{reasons}"));
        }
        let migration = status.last_sync.iter().find_map(|sync| sync.migration.as_ref());
        readiness.notes.extend(migration.map(|it| format!("migration: {it}")));
        readiness.notes.extend(without_a_way(status).map(|text| format!("peers: {text}")));
        let partial = status.faults.iter().filter(|fault| fault.kind.is_partial());
        readiness.notes.extend(partial.map(|fault| named_fault(&fault)));
        let warnings = status.last_sync.iter().flat_map(|sync| &sync.warnings);
        readiness.notes.extend(warnings.map(ToString::to_string));
        if !status.refused.is_empty() {
            readiness.notes.push(format!("peers: {} leases are refused", status.refused.len()));
        }
    }
    readiness
}

/// The data path is not exact while the kernel refuses a part of it or somebody keeps changing it. A peer's bad data is its own, and
/// so is its address while there are ways to others.
fn refused_by_the_kernel(status: &Status) -> Option<String> {
    let report = status.last_sync.as_ref().filter(|_| status.in_sync)?;
    let is_ours = |fault: &PeerFault| is_in_the_way(fault) && !status.serves_any_peer();
    if let Some(text) = named(report.problems.iter().filter(|problem| is_ours(&problem.fault))) {
        return Some(format!("data path: {text}"));
    }
    (report.postponed > 0).then(|| {
        format!(
            "data path: somebody keeps changing {} objects, they wait for their turn",
            report.postponed
        )
    })
}

/// The peers without a way to them, if there are ways to others, and those that are not served in one family or do not answer.
fn without_a_way(status: &Status) -> Option<String> {
    let (report, serves_any) = (status.last_sync.as_ref()?, status.serves_any_peer());
    // A peer that does not answer may be down itself.
    let is_partial = |fault: &PeerFault| {
        matches!(fault.kind(), FaultKind::FamilyUnusable | FaultKind::PeerUnresponsive)
    };
    let is_said = |fault: &PeerFault| is_partial(fault) || serves_any && is_in_the_way(fault);
    named(report.problems.iter().filter(|problem| is_said(&problem.fault)))
}

/// Whether it is the kernel or the underlay that keeps packets from the peer, and not what the peer published.
fn is_in_the_way(fault: &PeerFault) -> bool {
    matches!(fault.kind(), FaultKind::KernelRefused | FaultKind::PeerUnreachable)
}

/// A fault with what it concerns.
fn named_fault(fault: &&Fault) -> String {
    format!("{}: {fault}", fault.object)
}

/// The first of these peers with what is wrong, and how many more there are.
fn named<'a>(mut problems: impl Iterator<Item = &'a PeerProblem>) -> Option<String> {
    let first = problems.next()?;
    let others = match problems.count() {
        0 => String::new(),
        count => format!(", and {count} more peers"),
    };
    Some(format!("peer {}: {}{others}", first.peer, first.fault))
}

#[cfg(test)]
mod tests {
    use flannel_core::{FaultKind, Lease, LeaseAttrs, SyncReport};
    use flannel_firewall::{FirewallFault, FirewallReport};

    use super::*;

    fn good() -> Status {
        let mut status = Status::default();
        status.lease = Some(Lease::new("10.3.1.0-24".parse().unwrap(), LeaseAttrs::default()));
        (status.peers, status.in_sync, status.mtu) = (Some(2), true, Some(1450));
        status.last_sync = Some(SyncReport::default());
        status
    }

    fn of(activity: Activity, reason: &str) -> Fault {
        let fault = Fault::new(FaultKind::StoreAway, "store", activity.to_string(), reason);
        fault.during(activity)
    }

    fn with_firewall(firewall: FirewallReport) -> Status {
        let mut status = good();
        let report = status.last_sync.as_mut().unwrap();
        firewall.add_to(report);
        (status.in_sync, status.faults) = (report.is_exact(), report.faults.clone());
        status
    }

    fn lines(status: Option<&Status>, file: File) -> String {
        let lacking = BTreeMap::new();
        judge(&View { lacking: &lacking, status, file }).to_string()
    }

    #[test]
    fn a_node_that_has_all_is_ready() {
        assert_eq!(lines(Some(&good()), File::Exact), "flannel-node is ready\n");
    }

    #[test]
    fn the_firewall_is_a_part_of_it() {
        let mut firewall = FirewallReport::default();
        firewall.notes.push("br_netfilter is not loaded".into());
        let with =
            |firewall: &FirewallReport| lines(Some(&with_firewall(firewall.clone())), File::Exact);
        let ready = "flannel-node is ready\nfirewall: br_netfilter is not loaded\n";
        assert_eq!(with(&firewall), ready);
        firewall.faults.push(FirewallFault::new("write table nat of iptables", "it is locked"));
        let not = "flannel-node is not ready\nfirewall: cannot write table nat of iptables: it is locked\n";
        assert_eq!(with(&firewall), not);
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let not = |change: &dyn Fn(&mut Status), file: File, line: &str| {
            let mut status = good();
            change(&mut status);
            let expected = format!("flannel-node is not ready\n{line}\n");
            assert_eq!(lines(Some(&status), file), expected);
        };
        let fault = |activity, reason: &'static str| {
            move |status: &mut Status| status.faults.push(of(activity, reason))
        };
        not(&|_| {}, File::Missing, "subnet.env: not there");
        not(&|_| {}, File::Different, "subnet.env: says something else");
        not(&|_| {}, File::NotDue, "subnet.env: not written yet");
        not(
            &|status| {
                status.lease = None;
                fault(Activity::Acquire, "no subnet is free")(status);
            },
            File::NotDue,
            "lease: none is held: cannot acquire a lease: no subnet is free",
        );
        not(
            &fault(Activity::Hold, "it was not renewed"),
            File::Exact,
            "lease: somebody else may have it: cannot trust the lease: it was not renewed",
        );
        not(
            &|status| status.peers = None,
            File::NotDue,
            "store: the leases of others are not known yet",
        );
        not(
            &|status| {
                status.in_sync = false;
                fault(Activity::Sync, "no buffer")(status);
            },
            File::NotDue,
            "data path: not up to date: cannot sync the data path: no buffer",
        );
        let firewall = |change: fn(&mut FirewallReport)| {
            let mut report = FirewallReport::default();
            change(&mut report);
            lines(Some(&with_firewall(report)), File::Exact)
        };
        assert_eq!(
            firewall(|report| report.faults.push(FirewallFault::new("run iptables", "not there"))),
            "flannel-node is not ready\nfirewall: cannot run iptables: not there\n"
        );
        assert_eq!(
            firewall(|report| report.notes.push("br_netfilter is not loaded".into())),
            "flannel-node is ready\nfirewall: br_netfilter is not loaded\n"
        );
        let problem = |fault| {
            move |status: &mut Status| {
                let mut report = SyncReport::default();
                report.problems =
                    vec![PeerProblem::new("10.3.2.0-24".parse().unwrap(), None, fault)];
                status.last_sync = Some(report);
            }
        };
        let fault = PeerFault::Kernel { operation: "add a route".into(), reason: "no".into() };
        let mut status = good();
        problem(fault)(&mut status);
        assert!(lines(Some(&status), File::Exact).starts_with("flannel-node is ready\npeers: "));
        status.peers = Some(1);
        assert_eq!(
            lines(Some(&status), File::Exact),
            "flannel-node is not ready\ndata path: peer 10.3.2.0-24: cannot add a route: no\n"
        );
        not(
            &|status| {
                let mut report = SyncReport::default();
                report.postponed = 3;
                status.last_sync = Some(report);
            },
            File::Exact,
            "data path: somebody keeps changing 3 objects, they wait for their turn",
        );
        let mut status = good();
        problem(PeerFault::BadData { detail: "x".into() })(&mut status);
        assert_eq!(lines(Some(&status), File::Exact), "flannel-node is ready\n", "the peer's own");
    }

    #[test]
    fn a_peer_without_a_way_is_its_own_trouble_unless_no_peer_has_one() {
        let mut status = good();
        let far = |key: &str| {
            let (operation, reason) = ("add a route".into(), "no way".into());
            let fault = PeerFault::Unreachable { operation, reason };
            PeerProblem::new(key.parse().unwrap(), None, fault)
        };
        let report = status.last_sync.as_mut().unwrap();
        report.problems.push(far("10.3.2.0-24"));
        let text = "peer 10.3.2.0-24: cannot add a route: no way";
        assert_eq!(
            lines(Some(&status), File::Exact),
            format!("flannel-node is ready\npeers: {text}\n")
        );
        status.last_sync.as_mut().unwrap().problems.push(far("10.3.3.0-24"));
        assert_eq!(
            lines(Some(&status), File::Exact),
            format!("flannel-node is not ready\ndata path: {text}, and 1 more peers\n")
        );
    }

    #[test]
    fn a_peer_that_does_not_answer_is_named_and_may_be_the_only_one() {
        let mut status = good();
        status.peers = Some(1);
        let fault = PeerFault::NoHandshake { seconds: 30, port: 51820 };
        let problem = PeerProblem::new("10.3.2.0-24".parse().unwrap(), None, fault);
        status.last_sync.as_mut().unwrap().problems.push(problem);
        let text = "no handshake with it was completed for 30 s: PSK or key differs, or UDP port 51820 is blocked";
        assert_eq!(
            lines(Some(&status), File::Exact),
            format!("flannel-node is ready\npeers: peer 10.3.2.0-24: {text}\n")
        );
    }

    #[test]
    fn a_store_that_is_away_is_said_and_no_reason() {
        let mut status = good();
        status.faults.push(of(Activity::Watch, "connection refused"));
        assert_eq!(
            lines(Some(&status), File::Exact),
            "flannel-node is ready\nstore: offline, the data path stays as it is: cannot watch leases: connection refused\n"
        );
    }

    #[test]
    fn before_there_is_a_node_it_is_said_what_is_waited_for() {
        assert_eq!(
            lines(None, File::NotDue),
            "flannel-node is not ready\nstart: the node is being set up\n"
        );
        let lacking = BTreeMap::from([("read the network config", "refused".to_owned())]);
        let readiness = judge(&View { lacking: &lacking, status: None, file: File::NotDue });
        assert_eq!(readiness.missing, ["start: cannot read the network config: refused"]);
    }
}
