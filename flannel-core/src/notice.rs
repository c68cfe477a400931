//! What an operator should see of a node.

/// Something that is the case with a node and that its operator should see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Which kind of thing it is, in one word such as `PeerUnusable`.
    pub reason: &'static str,
    /// What is the case, for people.
    pub message: String,
    /// Of what it is the end: it is only told after a notice with that reason. Notices without it are warnings.
    pub ends: Option<&'static str>,
}
