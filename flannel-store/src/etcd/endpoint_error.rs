//! What goes wrong between us and etcd, in words that say what to do.

use std::{fmt, io, time::Duration};

use flannel_tls::{Flaw, flaw};
use tokio_rustls::rustls::{self, AlertDescription};

use crate::{
    etcd::config::{Endpoint, EtcdConfigError},
    registry::RegistryError,
};

/// Why one endpoint was of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("{endpoint} wants a user: give username and password")]
    Anonymous { endpoint: Endpoint },
    #[error("the connection to {endpoint} broke ({reason})")]
    Broken { endpoint: Endpoint, reason: String },
    #[error(
        "{endpoint} refuses our certificate, or that there is none ({reason}): give a certificate and a key that its CA has signed"
    )]
    ClientCertificate { endpoint: Endpoint, reason: rustls::Error },
    #[error("{endpoint} refuses the user {user} with this password: correct username or password")]
    Credentials { endpoint: Endpoint, user: String },
    #[error("{source} ({})", source_of(source))]
    File { source: EtcdConfigError },
    #[error(
        "{endpoint} has no room left ({reason}): compact and defragment it, then disarm its alarm"
    )]
    Full { endpoint: Endpoint, reason: String },
    #[error("{endpoint}: it took longer than {limit:?} to {step}")]
    Late { endpoint: Endpoint, step: &'static str, limit: Duration },
    #[error(
        "{endpoint} has no way of TLS in common with this program ({reason}): if its certificate has a P-521 key, which the TLS \
         library here cannot verify, give it one of P-256, P-384, Ed25519 or RSA; if it wants a client certificate, give one"
    )]
    NoCommonTls { endpoint: Endpoint, reason: rustls::Error },
    #[error("{endpoint} did not talk to us ({reason}): if it wants TLS, write https://")]
    NotPlain { endpoint: Endpoint, reason: String },
    #[error("{endpoint} did not talk TLS ({reason}): if it wants none, write http://")]
    NotTls { endpoint: Endpoint, reason: io::Error },
    #[error(
        "{endpoint} does not let {user} do this ({reason}): grant it readwrite on everything that begins with {prefix}"
    )]
    Permission { endpoint: Endpoint, user: String, reason: String, prefix: String },
    #[error("{endpoint} answers: {reason}")]
    Refused { endpoint: Endpoint, reason: String },
    #[error("{endpoint} has a certificate that {} ({reason}): {}", flaw.says(), flaw.remedy())]
    ServerCertificate { endpoint: Endpoint, flaw: Flaw, reason: rustls::Error },
    #[error("{endpoint} did not answer within {patience:?}: check whether etcd is healthy there")]
    Silent { endpoint: Endpoint, patience: Duration },
    #[error("{endpoint} does not agree with us about TLS ({reason})")]
    Tls { endpoint: Endpoint, reason: io::Error },
    #[error(
        "{endpoint} cannot be reached ({reason}): check the address, and whether etcd runs there"
    )]
    Unreachable { endpoint: Endpoint, reason: io::Error },
}

impl EndpointError {
    /// What went wrong while agreeing on TLS, before or after the handshake.
    pub(super) fn of_tls(endpoint: Endpoint, error: io::Error) -> Self {
        use io::ErrorKind::{ConnectionReset, UnexpectedEof};
        let known = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some((reason, flaw)) = known.and_then(|it| Some((it.clone(), flaw(it)?))) {
            return Self::ServerCertificate { endpoint, flaw, reason };
        }
        match known.cloned() {
            Some(reason @ rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)) => {
                Self::NoCommonTls { endpoint, reason }
            }
            Some(reason @ rustls::Error::AlertReceived(alert)) if is_about_us(alert) => {
                Self::ClientCertificate { endpoint, reason }
            }
            Some(rustls::Error::InvalidMessage(_)) => Self::NotTls { endpoint, reason: error },
            // Who waits for an HTTP request hangs up.
            None if matches!(error.kind(), UnexpectedEof | ConnectionReset) => {
                Self::NotTls { endpoint, reason: error }
            }
            _ => Self::Tls { endpoint, reason: error },
        }
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::Anonymous { endpoint }
            | Self::Broken { endpoint, .. }
            | Self::ClientCertificate { endpoint, .. }
            | Self::Credentials { endpoint, .. }
            | Self::Full { endpoint, .. }
            | Self::Late { endpoint, .. }
            | Self::NoCommonTls { endpoint, .. }
            | Self::NotPlain { endpoint, .. }
            | Self::NotTls { endpoint, .. }
            | Self::Permission { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::ServerCertificate { endpoint, .. }
            | Self::Silent { endpoint, .. }
            | Self::Tls { endpoint, .. }
            | Self::Unreachable { endpoint, .. } => Some(endpoint),
            Self::File { .. } => None,
        }
    }

    /// Whether it stays so until somebody corrects our settings.
    fn is_denial(&self) -> bool {
        match self {
            Self::Anonymous { .. }
            | Self::ClientCertificate { .. }
            | Self::Credentials { .. }
            | Self::Permission { .. } => true,
            // A certificate that is out of date is replaced over there.
            Self::ServerCertificate { flaw, .. } => *flaw != Flaw::Dates,
            _ => false,
        }
    }

    /// Whether every other member would say the same.
    pub(super) fn is_everywhere(&self) -> bool {
        matches!(
            self,
            Self::Anonymous { .. }
                | Self::Credentials { .. }
                | Self::Full { .. }
                | Self::Permission { .. }
        )
    }
}

/// Why none of the endpoints tried was of use: the last error with each of them.
#[derive(Debug, Default)]
pub(super) struct EndpointErrors(Vec<EndpointError>);

impl EndpointErrors {
    pub(super) fn add(&mut self, error: EndpointError) {
        let endpoint = error.endpoint();
        self.0.retain(|other| other.endpoint() != endpoint);
        self.0.push(error);
    }

    /// The one that was met last.
    pub(super) fn last(mut self) -> Option<EndpointError> {
        self.0.pop()
    }

    /// The error of `operation`. Only if no endpoint can be expected to do better, it is a denial.
    pub(super) fn of(self, operation: impl Into<String>) -> RegistryError {
        let operation = operation.into();
        let everywhere =
            self.0.last().is_some_and(|error| error.is_everywhere() && error.is_denial());
        if everywhere || self.0.iter().all(EndpointError::is_denial) {
            return RegistryError::Denied { operation, source: Box::new(self) };
        }
        RegistryError::Unavailable { operation, source: Box::new(self) }
    }
}

impl From<EndpointError> for EndpointErrors {
    fn from(error: EndpointError) -> Self {
        Self(vec![error])
    }
}

impl std::error::Error for EndpointErrors {}

impl fmt::Display for EndpointErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            let between = if n == 0 { "" } else { "; " };
            write!(f, "{between}{error}")?;
        }
        Ok(())
    }
}

/// Whether etcd objects to our certificate.
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

fn source_of(error: &EtcdConfigError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}
