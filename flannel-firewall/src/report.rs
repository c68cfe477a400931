//! What one sync did to the rules.

use flannel_core::{Fault, FaultKind, SyncReport, Warning};

/// What one sync did to the rules of the firewall.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallReport {
    /// Who keeps the rules; `None` if that is not known yet.
    pub mode: Option<FirewallMode>,
    /// Rules that were listed; 0 if nobody has touched them since the last sync.
    pub read: u64,
    /// Rules that were not there, or not in their place, and are now.
    pub added: u64,
    /// Rules of ours that were in a wrong place or that nobody needs any more.
    pub removed: u64,
    /// Chains whose rules others had changed and that this sync found.
    pub drifted: u64,
    /// Programs that were run since the report before, to look or to write.
    pub runs: u64,
    /// What could not be done.
    pub faults: Vec<FirewallFault>,
    /// What a person should know: settings of others that keep our rules from their effect.
    pub notes: Vec<String>,
}

/// Who keeps the rules of the firewall.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum FirewallMode {
    /// Chains of iptables and ip6tables.
    Iptables,
    /// Tables of nftables.
    Nftables,
}

/// Something that the firewall needs and does not have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("cannot {operation}: {reason}")]
#[non_exhaustive]
pub struct FirewallFault {
    /// What we wanted, with its object.
    pub operation: String,
    /// Why not, and what to do about it.
    pub reason: String,
}

impl FirewallReport {
    /// How many rules were written.
    pub fn writes(&self) -> u64 {
        self.added + self.removed
    }

    /// Whether the rules are as they should be.
    pub fn is_exact(&self) -> bool {
        self.faults.is_empty()
    }

    /// Adds all this to the report of the data path: the [property](SyncReport::properties) [`FIREWALL`], the counters
    /// `firewall_rules_read`, `firewall_rules_added`, `firewall_rules_removed` and `firewall_program_runs`, and the faults and warnings
    /// of the object [`FIREWALL`]. Chains that others had changed count as repaired.
    pub fn add_to(self, report: &mut SyncReport) {
        let mode = self.mode.map_or("none", FirewallMode::keyword);
        report.properties.insert(FIREWALL.into(), mode.into());
        report.count("firewall_rules_read", self.read);
        report.count("firewall_rules_added", self.added);
        report.count("firewall_rules_removed", self.removed);
        report.count("firewall_program_runs", self.runs);
        if self.drifted > 0 {
            *report.repaired.by_kind.entry("chain".into()).or_default() += self.drifted;
        }
        report.faults.extend(self.faults.into_iter().map(|FirewallFault { operation, reason }| {
            Fault::new(FaultKind::KernelRefused, FIREWALL, operation, reason)
        }));
        report.warnings.extend(self.notes.into_iter().map(|text| Warning::new(FIREWALL, text)));
    }
}

impl FirewallMode {
    /// `iptables` or `nftables`.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl FirewallFault {
    /// A fault in doing `operation`, which reads well after "cannot".
    pub fn new(operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { operation: operation.into(), reason: reason.into() }
    }
}

/// How the firewall is named in reports of the data path.
pub const FIREWALL: &str = "firewall";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firewall_is_a_part_of_the_data_path() {
        let mut report = SyncReport::default();
        report.added = 1;
        let mut firewall = FirewallReport::default();
        (firewall.added, firewall.removed, firewall.drifted, firewall.runs) = (2, 3, 1, 4);
        firewall.mode = Some(FirewallMode::Nftables);
        firewall.notes.push("br_netfilter is not loaded".into());
        firewall.clone().add_to(&mut report);
        assert_eq!((report.writes(), report.wants_retry(), report.is_exact()), (1, false, true));
        assert_eq!(report.properties[FIREWALL], "nftables");
        assert_eq!(report.counters["firewall_rules_removed"], 3);
        assert_eq!(report.repaired.by_kind["chain"], 1);
        assert_eq!(report.warnings[0].to_string(), "firewall: br_netfilter is not loaded");

        firewall.faults.push(FirewallFault::new("add a rule", "no memory"));
        firewall.add_to(&mut report);
        assert!(report.wants_retry() && !report.is_exact());
        assert_eq!(report.faults[0].to_string(), "cannot add a rule: no memory");
    }
}
