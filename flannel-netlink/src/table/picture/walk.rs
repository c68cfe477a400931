use crate::{diff::Stage, packed::PackedKey, state::Kind};

/// How far the keys that a stage concerns have been walked through, in the order of the stage.
///
/// It is a place among keys, so that what comes and goes meanwhile does not matter: what comes behind it is met, the rest the next
/// time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    stage: Stage,
    kinds: &'static [Kind],
    /// Where to go on in the first of the kinds, if not at its begin.
    from: Option<PackedKey>,
}

impl Walk {
    pub(crate) const fn new(stage: Stage) -> Self {
        Self { stage, kinds: stage.kinds(), from: None }
    }

    pub(super) const fn stage(&self) -> Stage {
        self.stage
    }

    /// The kind, and from which key on; `None` at the end.
    pub(super) fn place(&self) -> Option<(Kind, PackedKey)> {
        let kind = *self.kinds.first()?;
        Some((kind, self.from.unwrap_or_else(|| PackedKey::before_all(kind))))
    }

    pub(super) const fn go_to(&mut self, key: PackedKey) {
        self.from = Some(key);
    }

    /// Goes on with the next kind.
    pub(super) fn end_kind(&mut self) {
        self.kinds = self.kinds.get(1..).unwrap_or_default();
        self.from = None;
    }
}
