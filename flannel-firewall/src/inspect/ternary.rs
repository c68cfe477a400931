//! Conditions of which it may not be known whether they hold.

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ternary {
    Unknown,
    False,
    True,
}

impl From<bool> for Ternary {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

impl Ternary {
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::True, Self::True) => Self::True,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn or(self, other: Self) -> Self {
        self.not_if(true).and(other.not_if(true)).not_if(true)
    }

    pub(crate) fn not_if(self, negated: bool) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            known => Self::from((known == Self::True) != negated),
        }
    }
}
