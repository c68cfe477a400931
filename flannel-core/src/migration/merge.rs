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
