use crate::state::Object;

/// One key: what is wanted there and what the kernel holds there.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) want: Option<Object>,
    pub(super) actual: Actual,
}

/// What the kernel holds under a key. That it is just what is wanted takes no memory.
#[derive(Debug, Default)]
pub(super) enum Actual {
    Fits,
    #[default]
    Missing,
    /// In the kernel's order, never empty.
    Other(Vec<Object>),
}

impl Entry {
    pub(super) fn found(&self) -> &[Object] {
        match &self.actual {
            Actual::Fits => self.want.as_slice(),
            Actual::Missing => &[],
            Actual::Other(found) => found,
        }
    }

    pub(super) fn fits(&self) -> bool {
        match self.actual {
            Actual::Fits => true,
            Actual::Missing => self.want.is_none(),
            Actual::Other(_) => false,
        }
    }

    pub(super) fn set(&mut self, found: Vec<Object>) {
        self.actual = match (&self.want, &found[..]) {
            (_, []) => Actual::Missing,
            (Some(want), [only]) if want.fits(only) => Actual::Fits,
            _ => Actual::Other(found),
        };
    }
}
