//! What the API server stores, and what happened to it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use serde_json::{Value, json};

use super::merge::merge;

/// All objects, by kind and key, as JSON.
#[derive(Debug)]
pub(super) struct Objects {
    kinds: BTreeMap<String, BTreeMap<String, Arc<str>>>,
    version: u64,
    history: VecDeque<Change>,
    /// Up to here, history was forgotten.
    compacted: u64,
    uids: u64,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) plural: String,
    pub(super) key: String,
    pub(super) kind: &'static str,
    pub(super) object: Arc<str>,
}

/// History does not go back so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Expired;

impl Default for Objects {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            // Versions are those of a store that others use too.
            version: 1000,
            history: VecDeque::new(),
            compacted: 1000,
            uids: 0,
        }
    }
}

impl Objects {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, plural: &str, key: &str) -> Option<Arc<str>> {
        self.kinds.get(plural)?.get(key).cloned()
    }

    pub(super) fn put(&mut self, plural: &str, key: &str, mut object: Value) {
        let uid = match self.get(plural, key).and_then(|text| serde_json::from_str(&text).ok()) {
            Some(before) => Value::clone(&before)["metadata"]["uid"].take(),
            None => {
                self.uids += 1;
                json!(format!("00000000-0000-4000-8000-{:012}", self.uids))
            }
        };
        object["metadata"]["uid"] = uid;
        self.store(plural, key, object);
    }

    /// Merges a patch; of a part only what belongs to that part.
    pub(super) fn patch(
        &mut self,
        plural: &str,
        key: &str,
        patch: &Value,
        part: Option<&str>,
    ) -> Option<Arc<str>> {
        let before = self.get(plural, key)?;
        let mut object: Value = serde_json::from_str(&before).ok()?;
        let mut patch = patch.clone();
        if let (Some(part), Some(members)) = (part, patch.as_object_mut()) {
            members.retain(|name, _| name == part || name == "metadata");
        }
        merge(&mut object, &patch);
        if serde_json::from_str::<Value>(&before).ok().as_ref() == Some(&object) {
            // Nothing is written then.
            return Some(before);
        }
        Some(self.store(plural, key, object))
    }

    pub(super) fn delete(&mut self, plural: &str, key: &str) {
        let removed = self.kinds.get_mut(plural).and_then(|objects| objects.remove(key));
        let Some(object) = removed.and_then(|text| serde_json::from_str::<Value>(&text).ok())
        else {
            return;
        };
        self.happened("DELETED", plural, key, object);
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
    }

    /// A page of the objects of a kind, beginning after `after`; and whether more follow.
    pub(super) fn page(
        &self,
        plural: &str,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<(&str, Arc<str>)>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.kinds.get(plural).into_iter();
        let mut objects = objects.flat_map(|it| it.range::<str, _>((start, Bound::Unbounded)));
        let page = objects.by_ref().take(limit).map(|(key, text)| (&**key, text.clone())).collect();
        (page, objects.next().is_some())
    }

    /// What happened after `version`, oldest first.
    pub(super) fn since(&self, version: u64) -> Result<Vec<Change>, Expired> {
        if version < self.compacted {
            return Err(Expired);
        }
        let first = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(first..).cloned().collect())
    }

    fn store(&mut self, plural: &str, key: &str, object: Value) -> Arc<str> {
        let is_new = self.get(plural, key).is_none();
        let text = self.happened(if is_new { "ADDED" } else { "MODIFIED" }, plural, key, object);
        let objects = self.kinds.entry(plural.into()).or_default();
        objects.insert(key.into(), text.clone());
        text
    }

    fn happened(
        &mut self,
        kind: &'static str,
        plural: &str,
        key: &str,
        mut object: Value,
    ) -> Arc<str> {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let object: Arc<str> = object.to_string().into();
        let (plural, key) = (plural.into(), key.into());
        self.history.push_back(Change { version, plural, key, kind, object: object.clone() });
        if self.history.len() > REMEMBERED {
            self.compacted = self.history.pop_front().map_or(self.compacted, |gone| gone.version);
        }
        object
    }
}

/// How many changes are remembered.
const REMEMBERED: usize = 4096;
