use std::fmt;

use crate::state::{Key, Link, Object};

/// A difference between what is wanted and what the kernel holds, that this owner did not make.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Drift {
    /// What differs.
    pub subject: DriftSubject,
    /// In which way.
    pub change: DriftChange,
    /// Who did it.
    pub by: ChangedBy,
}

impl Drift {
    /// A difference that somebody unknown has made.
    pub const fn new(subject: DriftSubject, change: DriftChange) -> Self {
        Self { subject, change, by: ChangedBy::Unknown }
    }
}

/// What a [`Drift`] is about.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum DriftSubject {
    /// A device that the owner watches, as it should be.
    Link(Link),
    /// An object, by its key.
    Object(Key),
}

impl DriftSubject {
    /// The kind of object, in a word: `address`, `forwarding_entry`, `link`, `neighbour`, `nexthop` or `route`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Link(_) => "link",
            Self::Object(Key::Address(..)) => "address",
            Self::Object(Key::ForwardingEntry(..)) => "forwarding_entry",
            Self::Object(Key::Neighbour(..)) => "neighbour",
            Self::Object(Key::Nexthop(_)) => "nexthop",
            Self::Object(Key::Route(..)) => "route",
        }
    }
}

/// In which way something differs from what is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum DriftChange {
    /// Something else stands in its place: this, as the kernel has it now.
    Altered(Object),
    /// A watched device has other attributes now: these.
    AlteredLink(Link),
    /// It could not be written before, and since then a device came up or an address came.
    MayWorkNow,
    /// The kernel takes another route to the same destination, or to a part of it: this.
    Overridden(Object),
    /// It is gone.
    Removed,
    /// It carries the owner's mark but the owner does not want it.
    Stray(Object),
}

/// Who made a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ChangedBy {
    /// The kernel itself, or somebody where the kernel does not say who.
    Kernel,
    /// Another program, by its netlink port, which often is its process number.
    Port(u32),
    /// Nobody knows: it was found by listing.
    Unknown,
}

impl ChangedBy {
    pub(crate) const fn of_port(port: u32) -> Self {
        match port {
            0 => Self::Kernel,
            port => Self::Port(port),
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            DriftSubject::Link(link) => write!(f, "{link}")?,
            DriftSubject::Object(key) => write!(f, "{key}")?,
        }
        match &self.change {
            DriftChange::Altered(object) => write!(f, " replaced by {object}")?,
            DriftChange::AlteredLink(now) => {
                write!(f, " altered")?;
                if let DriftSubject::Link(wanted) = &self.subject {
                    write_difference(f, wanted, now)?;
                }
            }
            DriftChange::MayWorkNow => return write!(f, " may be possible now"),
            DriftChange::Overridden(object) => write!(f, " is not used, but {object}")?,
            DriftChange::Removed => write!(f, " removed")?,
            DriftChange::Stray(object) => write!(f, " added as {object}")?,
        }
        match self.by {
            ChangedBy::Kernel => write!(f, ", by the kernel or an unnamed process"),
            ChangedBy::Port(port) => write!(f, " by another process (netlink port {port})"),
            ChangedBy::Unknown => write!(f, ", unknown by whom"),
        }
    }
}

/// What a watched device is, where that is not what it should be.
fn write_difference(f: &mut fmt::Formatter<'_>, wanted: &Link, now: &Link) -> fmt::Result {
    if let (Some(mac), true) = (now.mac, now.mac != wanted.mac) {
        write!(f, " to Ethernet address {mac}")?;
    }
    if now.mtu != wanted.mtu {
        write!(f, " to MTU {}", now.mtu)?;
    }
    if now.queue != wanted.queue {
        write!(f, " to a queue of {}", now.queue)?;
    }
    if now.kind != wanted.kind {
        write!(f, " to {:?}", now.kind)?;
    }
    if now.up != wanted.up {
        write!(f, " to {}", if now.up { "up" } else { "down" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::link;

    #[test]
    fn a_drift_says_who_did_what() {
        let wanted = link(7, "flannel.1");
        let mac = Some("0e:66:66:66:66:66".parse().unwrap());
        let now = Link { mac, up: false, ..wanted.clone() };
        let drift = Drift {
            subject: DriftSubject::Link(wanted),
            change: DriftChange::AlteredLink(now),
            by: ChangedBy::Port(4711),
        };
        let shown = "device flannel.1 altered to Ethernet address 0e:66:66:66:66:66 to down \
                     by another process (netlink port 4711)";
        assert_eq!(drift.to_string(), shown);
    }
}
