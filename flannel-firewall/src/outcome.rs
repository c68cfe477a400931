//! What happened in one look at all rules.

use flannel_core::error_chain;

use crate::report::{FirewallFault, FirewallReport};

/// What one look at rules, here or everywhere, found and did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) report: FirewallReport,
    /// Whether anything was written, so that it has to be looked at again.
    pub(crate) wrote: bool,
    /// What was not as it should be, in words.
    pub(crate) differences: Vec<String>,
    /// Whether what keeps the rules cannot keep them, whatever is tried.
    pub(crate) is_unusable: bool,
    /// Whether something that nobody wants any more could not be removed yet.
    pub(crate) has_leftovers: bool,
}

impl Outcome {
    pub(crate) fn fault(&mut self, operation: impl Into<String>, error: &dyn std::error::Error) {
        self.report.faults.push(FirewallFault::new(operation, error_chain(error)));
    }

    /// Something that costs nobody anything could not be done.
    pub(crate) fn note_failure(&mut self, operation: &str, error: &dyn std::error::Error) {
        self.has_leftovers = true;
        self.report.notes.push(format!("cannot {operation}: {}", error_chain(error)));
    }

    /// The faults become notes: what was to be removed is in nobody's way.
    pub(crate) fn downgrade_faults(&mut self) {
        self.has_leftovers |= !self.report.faults.is_empty();
        let faults = std::mem::take(&mut self.report.faults);
        self.report.notes.extend(faults.iter().map(ToString::to_string));
    }

    /// Adds what another look, or a look elsewhere, found and did.
    pub(crate) fn add(&mut self, other: Self) {
        self.report.read += other.report.read;
        self.report.added += other.report.added;
        self.report.removed += other.report.removed;
        self.report.drifted += other.report.drifted;
        self.report.faults.extend(other.report.faults);
        self.report.notes.extend(other.report.notes);
        self.differences.extend(other.differences);
        self.wrote |= other.wrote;
        self.is_unusable |= other.is_unusable;
        self.has_leftovers |= other.has_leftovers;
    }

    pub(crate) fn wrote(&mut self, added: u64, removed: u64, differences: Vec<String>) {
        self.report.added += added;
        self.report.removed += removed;
        self.report.drifted += 1;
        self.differences.extend(differences);
        self.wrote = true;
    }
}
