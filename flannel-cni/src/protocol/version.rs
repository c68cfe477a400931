use std::fmt;

use super::{Code, Error};

/// A version of the specification.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Version {
    /// Also what a configuration without a version means.
    #[default]
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written in a configuration.
    pub const fn text(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads what a configuration says; an empty text is 0.1.0.
    ///
    /// # Errors
    ///
    /// [`Code::IncompatibleVersion`] for one that is not supported.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.text() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::text).join(", ");
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions")
                .with_details(format!("config is {text:?}, plugin supports {known}"))
        })
    }

    /// The answer to `VERSION`.
    pub fn report() -> String {
        let supported = Self::ALL.map(Self::text);
        let report = serde_json::json!({
            "cniVersion": Self::LATEST.text(), "supportedVersions": supported,
        });
        format!("{report}\n")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
