use std::time::Duration;

use flannel_core::{BackendError, Fault, FaultKind};
use flannel_netlink::{
    LogLimit,
    iface::{Interface, InterfaceChanges, InterfaceFault},
    state::IpFamily,
};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::UplinkFinder;

/// Tells when a finder has another answer: another MTU, another address, a device made anew, another device, or a fault.
#[derive(Debug)]
pub struct UplinkWatch {
    finder: UplinkFinder,
    changes: InterfaceChanges,
    current: Interface,
    /// When to look without being told.
    look_at: Option<Instant>,
    /// Until when faults that are new may pass by themselves.
    tolerant_until: Option<Instant>,
    log: LogLimit,
}

impl UplinkWatch {
    pub(super) fn new(finder: UplinkFinder, changes: InterfaceChanges, current: Interface) -> Self {
        // Something may have changed since `current` was found.
        let look_at = Some(Instant::now());
        let log = LogLimit::default();
        Self { finder, changes, current, look_at, tolerant_until: None, log }
    }

    /// The last answer.
    pub const fn current(&self) -> &Interface {
        &self.current
    }

    /// What keeps the uplink of the last answer from carrying packets to peers, for a report. It counts against readiness unless
    /// another address family works.
    pub fn faults(&self) -> Vec<Fault> {
        faults(&self.current)
    }

    /// Resolves with the new answer when it differs from the last: at once if it has other addresses or is another device, and if it
    /// only has a new fault, such as the address missing, when that has lasted half a second.
    ///
    /// # Errors
    ///
    /// [`BackendError::Interface`] when the kernel cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call tells the difference.
    pub async fn changed(&mut self) -> Result<Interface, BackendError> {
        loop {
            match self.look_at {
                Some(at) => drop(timeout_at(at, self.changes.next()).await),
                None => self.changes.next().await,
            }
            // If this look is dropped midway, the next call looks again.
            self.look_at = Some(Instant::now());
            let found = self.finder.find().await?.interface;
            self.look_at = None;
            if found == self.current {
                self.tolerant_until = None;
                continue;
            }
            let has_new_fault = found.faults.iter().any(|it| !self.current.faults.contains(it));
            let mut as_before = found.clone();
            as_before.faults.clone_from(&self.current.faults);
            let is_same = as_before == self.current;
            if is_same && has_new_fault {
                let until = *self.tolerant_until.get_or_insert_with(|| Instant::now() + TOLERANCE);
                if Instant::now() < until {
                    self.look_at = Some(until);
                    continue;
                }
            }
            self.tolerant_until = None;
            if !is_same && self.log.allows(Instant::now()).is_some() {
                let Interface { name, mtu, v4, v6, .. } = &found;
                info!(interface = name, mtu, ?v4, ?v6, "uplink changed");
            }
            self.current = found.clone();
            return Ok(found);
        }
    }
}

fn faults(uplink: &Interface) -> Vec<Fault> {
    let lacks = |family| uplink.faults.contains(&InterfaceFault::NoAddress(family));
    let works = |family| uplink.address(family).is_some() && !lacks(family);
    let works = IpFamily::ALL.into_iter().any(works);
    let fault = |fault: &InterfaceFault| {
        let (kind, object) = match fault {
            InterfaceFault::NoAddress(IpFamily::V4) if works => (FaultKind::FamilyUnusable, "IPv4"),
            InterfaceFault::NoAddress(IpFamily::V6) if works => (FaultKind::FamilyUnusable, "IPv6"),
            _ => (FaultKind::AddressMissing, "uplink"),
        };
        let remedy = match fault {
            InterfaceFault::Down => "set it up",
            InterfaceFault::NoAddress(_) => "give it one",
            InterfaceFault::NoCarrier => "look at its cable, or at the device at its other end",
            _ => "bring it back, or start the node with another one",
        };
        let operation = format!("reach peers through {}", uplink.name);
        Fault::new(kind, object, operation, format!("it {fault}")).with_remedy(remedy)
    };
    uplink.faults.iter().map(fault).collect()
}

/// How long the address may be missing before it is worth a word: whoever renumbers a host removes one before adding the other.
const TOLERANCE: Duration = Duration::from_millis(500);
