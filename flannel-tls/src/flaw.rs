//! What is wrong with a server's certificate, in words that say what to do.

use tokio_rustls::rustls::{CertificateError, Error};

use crate::verifier::is_authority;

/// What is wrong with a server's certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Flaw {
    /// It is one of an authority (`CA:TRUE`), and not the one that was given.
    Authority,
    /// It has expired, or is of the future.
    Dates,
    /// It is malformed, revoked, not for servers, or of a kind that is not supported.
    Invalid,
    /// It is for another name.
    Name,
    /// Nobody who is known has signed it.
    Unknown,
}

/// What is wrong with the certificate, if that is what `error` is about.
pub fn flaw(error: &Error) -> Option<Flaw> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let Error::InvalidCertificate(reason) = error else { return None };
    Some(match reason {
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => Flaw::Dates,
        NotValidForName | NotValidForNameContext { .. } => Flaw::Name,
        reason if is_authority(reason) => Flaw::Authority,
        // The signature is wrong where a CA was made anew under its old name.
        BadSignature | UnknownIssuer => Flaw::Unknown,
        _ => Flaw::Invalid,
    })
}

impl Flaw {
    /// What the certificate is like, as it reads after "a certificate that".
    pub fn says(self) -> &'static str {
        match self {
            Self::Authority => "is an authority's (CA:TRUE)",
            Self::Dates => "is out of date",
            Self::Invalid => "is not valid for a server",
            Self::Name => "is for another name",
            Self::Unknown => "is not to be trusted",
        }
    }

    /// What somebody can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Authority => {
                "give this very certificate as that of the CA, or give the server one without CA:TRUE"
            }
            Self::Dates => "renew it there, or set the clock here",
            Self::Invalid => "replace it there",
            Self::Name => "use an address that is in it, or add this one to it",
            Self::Unknown => "give the certificate of the CA that has signed it",
        }
    }
}
