//! What does not work, as data that a program can act upon.

use std::{error::Error, fmt, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{backend::BackendError, store::StoreError};

/// Something that does not work right now and is retried.
///
/// [`fmt::Display`] is one line for people: what failed, why, and what to do. Programs act on [`kind`](Self::kind).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fault {
    /// What the node was doing.
    pub activity: Activity,
    /// Which kind of fault it is.
    pub kind: FaultKind,
    /// What it concerns: `store`, `uplink`, `firewall`, `IPv6`, and the like.
    pub object: String,
    /// What was attempted, as it reads after "cannot".
    pub operation: String,
    /// Why it failed: the error and its causes.
    pub reason: String,
    /// What somebody can do about it, if that is known.
    pub remedy: Option<String>,
    /// Since when. Serialized as milliseconds since the Unix epoch.
    #[serde(with = "unix_millis")]
    pub since: SystemTime,
}

/// What kind of fault it is: what a program distinguishes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The uplink, or a usable address on it, is missing.
    AddressMissing,
    /// The backend cannot work with its options or on this machine.
    BackendUnusable,
    /// The network configuration was changed to something that a running node cannot adopt.
    ConfigChanged,
    /// There is no network configuration.
    ConfigMissing,
    /// The network configuration cannot be used.
    ConfigUnusable,
    /// One address family cannot be served; the other one is.
    FamilyUnusable,
    /// The kernel, or what programs it, refuses something.
    KernelRefused,
    /// The lease was not renewed in time; another node may have it.
    LeaseExpired,
    /// The lease belongs to somebody else, or was deleted.
    LeaseLost,
    /// Every subnet is taken.
    NetworkFull,
    /// Another node has our name.
    NodeIdInUse,
    /// What a peer published cannot be followed.
    PeerUnusable,
    /// There is no route to a peer.
    PeerUnreachable,
    /// A peer does not answer.
    PeerUnresponsive,
    /// The store does not answer.
    StoreAway,
    /// The store refuses us.
    StoreRefused,
}

/// What a node was doing when something failed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Acquiring a lease.
    Acquire,
    /// Finding out what to publish.
    Advertise,
    /// Reading and following the network configuration.
    Config,
    /// Trusting the lease: it was not renewed for so long that somebody else may have the subnet.
    Hold,
    /// Renewing or publishing the lease.
    Renew,
    /// Starting our own end of the data path.
    Start,
    /// Making the data path match the peers.
    Sync,
    /// Watching the leases of others.
    Watch,
}

impl Fault {
    /// A fault of the data path: `operation`, which reads well after "cannot", failed on `object` for `reason`.
    ///
    /// The node sets [`since`](Self::since) when it first sees the fault.
    pub fn new(
        kind: FaultKind,
        object: impl Into<String>,
        operation: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            activity: Activity::Sync,
            kind,
            object: object.into(),
            operation: operation.into(),
            reason: reason.into(),
            remedy: None,
            since: SystemTime::UNIX_EPOCH,
        }
    }

    /// The same fault of another activity.
    #[must_use]
    pub fn during(mut self, activity: Activity) -> Self {
        self.activity = activity;
        self
    }

    /// The same fault with what somebody can do about it.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Whether both are the same fault, perhaps seen at different times.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { since: other.since, ..self.clone() } == *other
    }

    /// A fault that `error` caused in `activity`.
    pub(crate) fn of(activity: Activity, error: &(impl Faulty + 'static)) -> Self {
        let fault =
            Self::new(error.kind(), error.object(), activity.to_string(), error_chain(error));
        Self { remedy: error.remedy(), ..fault.during(activity) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, reason, remedy, .. } = self;
        write!(f, "cannot {operation}: {reason}")?;
        match remedy {
            Some(remedy) if !reason.contains(remedy.as_str()) => write!(f, "; {remedy}"),
            _ => Ok(()),
        }
    }
}

impl FaultKind {
    /// Whether the node serves its pods in spite of it, if not all of them: it does not count against readiness.
    pub fn is_partial(self) -> bool {
        matches!(
            self,
            Self::ConfigChanged
                | Self::FamilyUnusable
                | Self::PeerUnreachable
                | Self::PeerUnresponsive
                | Self::PeerUnusable
        )
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acquire => "acquire a lease",
            Self::Advertise => "find out what to publish",
            Self::Config => "read the network config",
            Self::Hold => "trust the lease",
            Self::Renew => "renew the lease",
            Self::Start => "start the backend",
            Self::Sync => "sync the data path",
            Self::Watch => "watch leases",
        })
    }
}

/// An error that knows which kind of fault it is.
pub(crate) trait Faulty: Error {
    fn kind(&self) -> FaultKind;
    fn object(&self) -> &'static str;
    fn remedy(&self) -> Option<String> {
        None
    }
}

impl Faulty for StoreError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Config { .. } => FaultKind::ConfigUnusable,
            Self::ConfigMissing { .. } => FaultKind::ConfigMissing,
            Self::Denied { .. } => FaultKind::StoreRefused,
            Self::Full { .. } => FaultKind::NetworkFull,
            Self::NodeIdInUse { .. } => FaultKind::NodeIdInUse,
            Self::Revoked { .. } => FaultKind::LeaseLost,
            Self::Unavailable { .. } => FaultKind::StoreAway,
        }
    }

    fn object(&self) -> &'static str {
        match self {
            Self::Config { .. } | Self::ConfigMissing { .. } => "config",
            Self::Full { .. } => "network",
            Self::NodeIdInUse { .. } => "node id",
            Self::Revoked { .. } => "lease",
            Self::Denied { .. } | Self::Unavailable { .. } => "store",
        }
    }

    fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Config { place, .. } => format!("correct the network config in {place}"),
            Self::ConfigMissing { .. } => {
                r#"write one there, such as {"Network":"10.244.0.0/16"}"#.into()
            }
            Self::Denied { .. } => "grant the node's user access to the network's keys".into(),
            Self::Full { .. } => "release leases or enlarge the network".into(),
            Self::NodeIdInUse { .. } => "give one of them another name".into(),
            Self::Revoked { .. } | Self::Unavailable { .. } => return None,
        })
    }
}

impl Faulty for BackendError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Config { .. } | Self::Unsupported { .. } => FaultKind::BackendUnusable,
            Self::Address { .. } | Self::Interface { .. } => FaultKind::AddressMissing,
            Self::Kernel { .. } => FaultKind::KernelRefused,
        }
    }

    fn object(&self) -> &'static str {
        match self {
            Self::Config { .. } | Self::Unsupported { .. } => "backend",
            Self::Address { .. } | Self::Interface { .. } => "uplink",
            Self::Kernel { .. } => "data path",
        }
    }
}

/// An error with all its causes, each once, in one line.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

pub(crate) mod unix_millis {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        at: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::deserialize(from)?));
        at.ok_or_else(|| serde::de::Error::custom("a moment later than this system can represent"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fault_of_the_store_says_what_to_do_unless_waiting_is_all() {
        let missing = StoreError::ConfigMissing { place: "/etc/net".into() };
        let remedy = Fault::of(Activity::Watch, &missing).remedy;
        assert!(remedy.is_some_and(|it| it.contains(r#"{"Network":"10.244.0.0/16"}"#)));
        let source = "timed out".into();
        let away = StoreError::Unavailable { operation: "read".into(), source };
        assert_eq!(Fault::of(Activity::Watch, &away).remedy, None);
    }

    #[test]
    fn a_fault_of_the_backend_is_of_what_somebody_has_to_look_at() {
        let reason = || "no".into();
        for (error, kind, object) in [
            (
                BackendError::Unsupported { backend: "udp".into(), reason: "no".into() },
                FaultKind::BackendUnusable,
                "backend",
            ),
            (BackendError::Interface { source: reason() }, FaultKind::AddressMissing, "uplink"),
            (
                BackendError::Kernel { operation: "add a route".into(), source: reason() },
                FaultKind::KernelRefused,
                "data path",
            ),
        ] {
            let Fault { kind: found, object: of, remedy, .. } = Fault::of(Activity::Start, &error);
            assert_eq!((found, &*of, remedy), (kind, object, None), "{error}");
        }
    }

    #[test]
    fn a_fault_reads_as_one_line_and_survives_its_json() {
        let source = "timed out".into();
        let away = StoreError::Unavailable { operation: "read the leases".into(), source };
        let mut fault = Fault::of(Activity::Watch, &away);
        assert_eq!((fault.kind, &*fault.object), (FaultKind::StoreAway, "store"));
        assert_eq!(fault.to_string(), "cannot watch leases: cannot read the leases: timed out");
        fault.since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let json = serde_json::to_string(&fault).unwrap();
        assert!(
            json.contains(r#""kind":"store_away""#) && json.contains("1700000000123"),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Fault>(&json).unwrap(), fault);
        let later = Fault { since: SystemTime::UNIX_EPOCH, ..fault.clone() };
        assert!(fault != later && fault.is_same(&later));
    }

    #[test]
    fn a_remedy_is_said_once() {
        let fault = Fault::new(FaultKind::KernelRefused, "firewall", "write a rule", "no memory");
        assert_eq!(fault.to_string(), "cannot write a rule: no memory");
        let fault = fault.with_remedy("buy some");
        assert_eq!(fault.to_string(), "cannot write a rule: no memory; buy some");
        let missing =
            Fault::of(Activity::Config, &StoreError::ConfigMissing { place: "/x".into() });
        assert_eq!(missing.to_string().matches("write one there").count(), 1, "{missing}");
    }
}
