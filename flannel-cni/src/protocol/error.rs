use std::fmt;

use serde_json::json;

use super::Version;

/// What a plugin answers when it could not do what it was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Error {
    /// What kind of failure it is, for the runtime.
    pub code: Code,
    /// What failed, on which object, and why.
    pub message: String,
    /// What to do about it; empty if there is nothing to say.
    pub details: String,
}

/// The kinds of failures. The numbers up to 99 are the specification's, those from 100 on this project's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the specification")]
pub enum Code {
    Decoding,
    /// Another plugin could not be found, or answered nothing that can be read.
    Delegate,
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    InvalidNamespace,
    Io,
    /// The kernel refused something.
    Kernel,
    /// `STATUS`: ADD would fail, and what exists may have no connectivity.
    LimitedConnectivity,
    /// All addresses are taken, or the wanted one is.
    NoAddress,
    /// `STATUS`: ADD would fail.
    NotAvailable,
    /// `CHECK`: what should be there is not, or is different.
    NotAsExpected,
    /// What another plugin answered.
    Other(u32),
    TryAgainLater,
    UnknownContainer,
    UnsupportedField,
}

impl Code {
    /// As it is printed.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNamespace => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Kernel => 100,
            Self::NoAddress => 101,
            Self::NotAsExpected => 102,
            Self::Delegate => 103,
            Self::Other(number) => number,
        }
    }
}

impl Error {
    /// A failure without further advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// What failed first, with what else did: removals go on.
    pub(crate) fn of_all(results: impl IntoIterator<Item = Result<(), Self>>) -> Result<(), Self> {
        let mut failed = results.into_iter().filter_map(Result::err);
        let Some(mut first) = failed.next() else { return Ok(()) };
        for other in failed {
            first.message = format!("{}; {}", first.message, other.message);
        }
        Err(first)
    }

    /// As a plugin prints it.
    pub fn to_json(&self, version: Version) -> String {
        let mut object = json!({
            "cniVersion": version.text(),
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        super::result_json::pretty(&object)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.details {
            "" => write!(f, "{}", self.message),
            details => write!(f, "{}; {details}", self.message),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_failures_are_told() {
        let failed = |code, message| Err(Error::new(code, message).with_details(message));
        assert_eq!(Error::of_all([Ok(()), Ok(())]), Ok(()));
        let results = [Ok(()), failed(Code::Io, "a"), Ok(()), failed(Code::Kernel, "b")];
        let expected = Error::new(Code::Io, "a; b").with_details("a");
        assert_eq!(Error::of_all(results), Err(expected));
    }
}
