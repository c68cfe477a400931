//! The parts of objects that are wanted, as views of their JSON: nothing else is allocated.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;

/// What every object has, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta<'a> {
    /// Its name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Which object of that name it is: another one has another.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    /// What the store counts changes with.
    #[serde(borrow)]
    pub resource_version: Cow<'a, str>,
    /// Texts that programs and people attach to it.
    #[serde(borrow, deserialize_with = "or_default")]
    pub annotations: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

/// A Node, as far as it matters to a pod network.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct NodeView<'a> {
    /// What every object has.
    #[serde(borrow)]
    pub metadata: ObjectMeta<'a>,
    /// What the cluster wants of it.
    #[serde(borrow, deserialize_with = "or_default")]
    pub spec: NodeSpecView<'a>,
    /// What is the case with it.
    #[serde(borrow, deserialize_with = "or_default")]
    pub status: NodeStatusView<'a>,
}

/// The wanted parts of a Node's `spec`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpecView<'a> {
    /// The first block of addresses for its pods.
    #[serde(borrow, rename = "podCIDR")]
    pub pod_cidr: Cow<'a, str>,
    /// All of them.
    #[serde(borrow, rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<Cow<'a, str>>,
}

/// The wanted parts of a Node's `status`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct NodeStatusView<'a> {
    /// What is said of it.
    #[serde(borrow, deserialize_with = "or_default")]
    pub conditions: Vec<ConditionView<'a>>,
}

/// One thing that is said of a Node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, rename_all = "camelCase")]
pub struct ConditionView<'a> {
    /// What it is about, such as `NetworkUnavailable`.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
    /// `True`, `False` or `Unknown`.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    /// Why, in one word.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// When the status changed last.
    #[serde(borrow, deserialize_with = "or_default")]
    pub last_transition_time: Cow<'a, str>,
}

/// What objects have that only their metadata was asked for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct MetadataOf<'a> {
    /// What every object has.
    #[serde(borrow, default)]
    pub metadata: ObjectMeta<'a>,
}

/// `null` is as good as nothing.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
