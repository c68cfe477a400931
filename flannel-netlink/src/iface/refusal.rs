//! Why no interface was chosen.

use std::fmt;

use ipnetwork::IpNetwork;

use crate::KernelError;

/// Why no interface was chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// The kernel could not be listed.
    #[error("cannot list {what} to choose an interface")]
    List {
        /// Which objects.
        what: &'static str,
        /// The kernel's reason.
        source: KernelError,
    },
    /// Nothing fits.
    #[error("no interface fits: {}", display_all(refusals))]
    NoneFits {
        /// Per selector, why not.
        refusals: Vec<Refusal>,
    },
}

/// Why one selector found no interface.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Refusal {
    /// The selector, for people.
    pub selector: String,
    /// What was wrong, if it was not an interface's fault.
    pub reason: Option<String>,
    /// Every interface and why it was not taken.
    pub interfaces: Vec<NotTaken>,
}

/// One interface that was not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NotTaken {
    /// Its name.
    pub name: String,
    /// Its addresses, usable or not.
    pub addresses: Vec<IpNetwork>,
    /// Why not, in words.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.selector)?;
        if let Some(reason) = &self.reason {
            write!(f, " ({reason})")?;
        }
        for (index, it) in self.interfaces.iter().enumerate() {
            let addresses: Vec<_> = it.addresses.iter().map(ToString::to_string).collect();
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{} [{}] {}", it.name, addresses.join(" "), it.reason)?;
        }
        Ok(())
    }
}

fn display_all(refusals: &[Refusal]) -> String {
    let all: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    all.join("; ")
}
