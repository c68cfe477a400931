//! One report of two networks.

use super::migration_plan::Side;
use crate::{
    backend::BackendError,
    fault::{Fault, FaultKind, error_chain},
    report::SyncReport,
    subnet::Subnet,
};

/// Adds what `side` reports to `report`: the problems of those peers only that it serves.
pub(super) fn add(
    report: &mut SyncReport,
    of_side: SyncReport,
    serves: impl Fn(&Subnet) -> bool,
    side: Side,
) {
    report.read += of_side.read;
    report.added += of_side.added;
    report.replaced += of_side.replaced;
    report.removed += of_side.removed;
    report.left_alone += of_side.left_alone;
    report.drifted += of_side.drifted;
    report.postponed += of_side.postponed;
    for (name, count) in of_side.counters {
        report.count(name, count);
    }
    for (name, value) in of_side.properties {
        report.properties.entry(name).or_insert(value);
    }
    for (kind, count) in of_side.repaired.by_kind {
        *report.repaired.by_kind.entry(kind).or_default() += count;
    }
    report.repaired.examples.extend(of_side.repaired.examples);
    report.repaired.examples.truncate(crate::report::Repaired::EXAMPLES);
    for fault in of_side.faults {
        if !report.faults.iter().any(|it| it.is_same(&fault)) {
            report.faults.push(match side {
                Side::Base => fault,
                // The other one serves all peers that this one cannot.
                Side::Beside => Fault { kind: FaultKind::ConfigChanged, ..fault },
            });
        }
    }
    for warning in of_side.warnings {
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
    report.problems.extend(of_side.problems.into_iter().filter(|it| serves(&it.peer)));
    report.problems.sort_by_key(|problem| problem.peer);
}

/// The fault of a node whose second backend does not work.
pub(super) fn fault(operation: String, error: &BackendError) -> Fault {
    Fault::new(FaultKind::ConfigChanged, "migration", operation, error_chain(error))
        .with_remedy("correct that, or set the network config back")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PeerFault, PeerProblem, Warning};

    fn peer(n: u8) -> Subnet {
        format!("10.3.{n}.0-24").parse().unwrap()
    }

    /// Each number is another one, times `n`.
    fn report(n: u64, properties: &'static str) -> SyncReport {
        let mut report = SyncReport {
            read: n,
            added: 2 * n,
            replaced: 3 * n,
            removed: 5 * n,
            left_alone: 7 * n,
            drifted: 11 * n,
            postponed: 13 * n,
            ..SyncReport::default()
        };
        report.count("rules", 17 * n);
        report.properties.insert("first".into(), properties.into());
        for what in 0..6 {
            report.repaired.add("route", what);
        }
        report.warnings.push(Warning::new("firewall", "of both"));
        report.faults.push(Fault::new(FaultKind::FamilyUnusable, "IPv6", "serve IPv6", "of both"));
        let fault = PeerFault::BadData { detail: properties.into() };
        report.problems = vec![4, 2]
            .into_iter()
            .map(|n| PeerProblem::new(peer(n), None, fault.clone()))
            .collect();
        report
    }

    #[test]
    fn numbers_are_added_and_a_problem_is_that_of_who_serves_the_peer() {
        let mut both = SyncReport::default();
        add(&mut both, report(1, "base"), |it| *it == peer(4), Side::Base);
        add(&mut both, report(2, "beside"), |it| *it == peer(2), Side::Beside);
        let SyncReport { read, added, replaced, removed, left_alone, drifted, postponed, .. } =
            both;
        let numbers = [read, added, replaced, removed, left_alone, drifted, postponed];
        assert_eq!(numbers, [3, 6, 9, 15, 21, 33, 39]);
        assert_eq!((both.counters["rules"], &*both.properties["first"]), (51, "base"));
        assert_eq!((both.repaired.by_kind["route"], both.repaired.examples.len()), (12, 8));
        assert_eq!((both.warnings.len(), both.faults.len()), (1, 1), "what both say is said once");
        let problems: Vec<_> =
            both.problems.iter().map(|it| (it.peer, it.fault.to_string())).collect();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].0 == peer(2) && problems[0].1.contains("beside"), "{problems:?}");
        assert!(problems[1].0 == peer(4) && problems[1].1.contains("base"), "{problems:?}");
    }

    #[test]
    fn a_fault_of_the_second_backend_is_no_fault_of_the_data_path() {
        let refused = |side| {
            let mut of_side = SyncReport::default();
            of_side.faults.push(Fault::new(FaultKind::KernelRefused, "route", "add a route", "no"));
            let mut report = SyncReport::default();
            add(&mut report, of_side, |_| true, side);
            (report.faults.len(), report.is_exact())
        };
        assert_eq!([refused(Side::Base), refused(Side::Beside)], [(1, false), (1, true)]);
    }
}
