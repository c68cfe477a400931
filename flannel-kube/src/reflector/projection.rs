//! What is kept of objects.

use std::sync::Arc;

#[cfg(doc)]
use super::ReflectorOptions;
use crate::ObjectMeta;

/// What is kept of each object.
pub trait Projection: Send + Sync + 'static {
    /// What is kept of one.
    type Kept: PartialEq + Send + Sync;

    /// What is to be kept of the object with this name, given as JSON.
    ///
    /// # Errors
    ///
    /// If it is no object of this kind; then it counts as not there.
    fn project(&self, name: &Arc<str>, object: &str) -> Result<Self::Kept, serde_json::Error>;

    /// The same if only its metadata is given, and what was kept before. Only called with
    /// [`metadata_only`](ReflectorOptions::metadata_only).
    fn merge(
        &self,
        _name: &Arc<str>,
        _metadata: &ObjectMeta<'_>,
        _known: Option<&Self::Kept>,
    ) -> Merged<Self::Kept> {
        Merged::Incomplete
    }
}

/// What metadata and what was known before make together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Merged<K> {
    /// All that is to be kept.
    Complete(K),
    /// Too little: the object is read whole.
    Incomplete,
}
