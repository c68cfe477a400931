use crate::{
    diff::Stage,
    state::{Key, Kind},
};

/// How far a stage has gone through the keys that concern it.
///
/// It is a place among keys, so that keys may come and go between two steps: those behind it are visited, the others by the next
/// sync.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    stage: Stage,
    kinds: &'static [Kind],
    /// Where to go on in the first of the kinds, if not at its beginning.
    from: Option<Key>,
}

impl Cursor {
    pub(crate) const fn new(stage: Stage) -> Self {
        Self { stage, kinds: stage.kinds(), from: None }
    }

    pub(super) const fn stage(&self) -> Stage {
        self.stage
    }

    /// The kind, and from which key on; `None` at the end.
    pub(super) fn place(&self) -> Option<(Kind, Key)> {
        let kind = *self.kinds.first()?;
        Some((kind, self.from.unwrap_or_else(|| Key::first(kind))))
    }

    pub(super) const fn go_to(&mut self, key: Key) {
        self.from = Some(key);
    }

    /// Goes on with the next kind.
    pub(super) fn end_kind(&mut self) {
        self.kinds = self.kinds.get(1..).unwrap_or_default();
        self.from = None;
    }
}
