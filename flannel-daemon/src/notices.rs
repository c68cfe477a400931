//! What a cluster's operators should see of a node: a plain function of its status.

use std::collections::BTreeMap;

use flannel_core::{Fault, FaultKind, Notice, PeerFault, PeerProblem, Status};
use flannel_firewall::FIREWALL;

use crate::readiness::Readiness;

/// One notice for each reason. What keeps a node from being ready is in one of its own as well, with all of it.
pub(crate) fn of(readiness: &Readiness, status: Option<&Status>) -> Vec<Notice> {
    let mut notices = BTreeMap::<&str, Group>::new();
    let mut add = |reason, text: String| notices.entry(reason).or_default().add(text);
    for missing in &readiness.missing {
        add(NOT_READY, missing.clone());
    }
    let status = status.into_iter();
    for fault in status.clone().flat_map(|status| &status.faults) {
        add(reason_of(fault), fault.to_string());
    }
    let report = status.clone().filter_map(|status| status.last_sync.as_ref());
    for warning in report.clone().flat_map(|report| &report.warnings) {
        add("FirewallInTheWay", warning.text.clone());
    }
    let problems = report.flat_map(|report| &report.problems);
    for problem in problems.chain(status.flat_map(|status| &status.refused)) {
        add(reason_of_peer(&problem.fault), of_peer(problem));
    }
    let ready = Notice {
        reason: "FlannelIsUp",
        message: "Flannel is ready on this node".into(),
        ends: Some(NOT_READY),
    };
    let ready = readiness.is_ready().then_some(ready);
    let notices = notices.into_iter();
    let notices =
        notices.map(|(reason, group)| Notice { reason, message: group.text(), ends: None });
    notices.chain(ready).collect()
}

/// Several things of one reason: the first of them, and how many more.
#[derive(Default)]
struct Group {
    texts: Vec<String>,
    more: usize,
}

impl Group {
    fn add(&mut self, text: String) {
        if self.texts.contains(&text) {
            return;
        }
        match self.texts.len() < SHOWN {
            true => self.texts.push(text),
            false => self.more += 1,
        }
    }

    fn text(self) -> String {
        let more = (self.more > 0).then(|| format!("and {} more", self.more));
        self.texts.into_iter().chain(more).collect::<Vec<_>>().join("; ")
    }
}

fn reason_of(fault: &Fault) -> &'static str {
    match fault.kind {
        FaultKind::AddressMissing => "UplinkAddressMissing",
        FaultKind::BackendUnusable => "BackendUnusable",
        FaultKind::ConfigChanged => "ConfigChangeNeedsRestart",
        FaultKind::ConfigMissing => "ConfigMissing",
        FaultKind::ConfigUnusable => "ConfigUnusable",
        FaultKind::FamilyUnusable => "FamilyUnusable",
        FaultKind::KernelRefused if fault.object == FIREWALL => "FirewallRefused",
        FaultKind::KernelRefused => "KernelRefused",
        FaultKind::LeaseExpired | FaultKind::LeaseLost => "LeaseLost",
        FaultKind::NetworkFull => "NetworkFull",
        FaultKind::NodeIdInUse => "NodeIdInUse",
        FaultKind::PeerUnusable => "PeerUnusable",
        FaultKind::PeerUnreachable => "PeerUnreachable",
        FaultKind::PeerUnresponsive => "PeerUnresponsive",
        FaultKind::StoreAway | FaultKind::StoreRefused => "StoreFailed",
        _ => "FlannelFault",
    }
}

fn reason_of_peer(fault: &PeerFault) -> &'static str {
    match fault {
        PeerFault::BadData { .. } | PeerFault::NoAddress { .. } => "PeerUnusable",
        PeerFault::Kernel { .. } => "KernelRefused",
        PeerFault::NoHandshake { .. } => "PeerUnresponsive",
        PeerFault::OtherBackend { .. } => "PeerOtherBackend",
        PeerFault::Overridden { .. } => "PeerRouteOverridden",
        PeerFault::PathTooNarrow { .. } => "PeerPathTooNarrow",
        PeerFault::Refused { .. } => "PeerRefused",
        PeerFault::Unreachable { .. } => "PeerUnreachable",
        _ => "PeerFault",
    }
}

fn of_peer(problem: &PeerProblem) -> String {
    let PeerProblem { peer, fault, .. } = problem;
    let at = problem.address.map(|address| format!(" at {address}")).unwrap_or_default();
    let text = fault.to_string();
    let remedy = problem.remedy.as_deref().filter(|remedy| !text.contains(remedy));
    format!("peer {peer}{at}: {text}{}", remedy.map(|it| format!("; {it}")).unwrap_or_default())
}

const NOT_READY: &str = "FlannelIsNotReady";
/// How many things of one reason are named.
const SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use flannel_core::{Activity, SyncReport, Warning};

    use super::*;

    fn said(readiness: &Readiness, status: Option<&Status>) -> Vec<(&'static str, String)> {
        of(readiness, status).into_iter().map(|it| (it.reason, it.message)).collect()
    }

    #[test]
    fn a_node_that_is_not_ready_says_all_that_is_missing() {
        let missing = vec!["lease: none is held".into(), "store: not known yet".into()];
        let readiness = Readiness { missing, notes: Vec::new() };
        let expected = [(NOT_READY, "lease: none is held; store: not known yet".into())];
        assert_eq!(said(&readiness, None), expected);
        let notices = of(&Readiness::default(), None);
        assert_eq!((notices.len(), notices[0].ends), (1, Some(NOT_READY)));
    }

    #[test]
    fn faults_problems_and_warnings_have_reasons_of_their_own() {
        let mut status = Status::default();
        let fault = |kind, object| Fault::new(kind, object, "do it", "no");
        status.faults = vec![
            fault(FaultKind::KernelRefused, FIREWALL),
            fault(FaultKind::KernelRefused, "data path"),
            fault(FaultKind::StoreAway, "store").during(Activity::Acquire),
        ];
        let mut report = SyncReport::default();
        report.warnings.push(Warning::new(FIREWALL, "a rule drops packets"));
        let other = PeerFault::OtherBackend { ours: "vxlan".into(), theirs: "udp".into() };
        for n in 0..5 {
            let peer = format!("10.3.{n}.0-24").parse().unwrap();
            let address = Some([192, 0, 2, n].into());
            report.problems.push(PeerProblem::new(peer, address, other.clone()));
        }
        status.last_sync = Some(report);
        let bad = PeerFault::Refused { detail: "its subnet is ours".into() };
        status.refused = vec![PeerProblem::new("10.3.9.0-24".parse().unwrap(), None, bad)];
        let said = said(&Readiness::default(), Some(&status));
        let reasons: Vec<_> = said.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(
            reasons,
            [
                "FirewallInTheWay",
                "FirewallRefused",
                "KernelRefused",
                "PeerOtherBackend",
                "PeerRefused",
                "StoreFailed",
                "FlannelIsUp"
            ]
        );
        let (_, peers) = &said[3];
        assert!(peers.starts_with("peer 10.3.0.0-24 at 192.0.2.0: it uses the backend \"udp\""));
        assert!(peers.ends_with("; and 2 more"), "{peers}");
        assert!(said[4].1.contains("release the lease if no node holds it"), "{}", said[4].1);
    }
}
