//! Conditions of which it may not be known whether they hold.

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Truth {
    Maybe,
    No,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Truth {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        self.not_if(true).and(other.not_if(true)).not_if(true)
    }

    pub(crate) fn not_if(self, negated: bool) -> Self {
        match self {
            Self::Maybe => Self::Maybe,
            known => Self::from((known == Self::Yes) != negated),
        }
    }
}
