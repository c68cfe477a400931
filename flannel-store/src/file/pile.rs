//! Many files as they were read, in a few large pieces of memory.

use std::{ffi::OsString, time::SystemTime};

use flannel_core::NodeId;

use crate::file::files::{Files, Found};

/// Files as they were read. It lives for as long as a node takes to start, and ten thousands of small pieces would leave the
/// process that much larger for ever.
#[derive(Debug, Default)]
pub(super) struct Pile {
    /// One for each that was [appended](Self::append), so that nothing is copied.
    parts: Vec<Part>,
}

#[derive(Debug, Default)]
struct Part {
    text: String,
    rows: Vec<Row>,
}

/// Where the texts of a file begin, and the lengths of its key, its value and its owner, which follow each other.
#[derive(Debug)]
struct Row {
    start: usize,
    key: usize,
    value: Result<usize, usize>,
    owner: Option<usize>,
    revision: u64,
    expires: Option<SystemTime>,
}

impl Pile {
    /// Reads those of `names` that exist.
    pub(super) fn read(files: &mut Files, names: &[OsString]) -> Self {
        let text = String::with_capacity(names.len() * USUAL_BYTES);
        let mut part = Part { text, rows: Vec::new() };
        part.rows.reserve_exact(names.len());
        for found in names.iter().filter_map(|name| files.read(name)) {
            part.push(&found);
        }
        Self { parts: vec![part] }
    }

    pub(super) fn push(&mut self, found: &Found) {
        if self.parts.is_empty() {
            self.parts.push(Part::default());
        }
        if let Some(part) = self.parts.last_mut() {
            part.push(found);
        }
    }

    /// Adds all files of another one.
    pub(super) fn append(&mut self, other: Self) {
        self.parts.extend(other.parts);
    }

    /// Takes out the files with these keys.
    pub(super) fn remove(&mut self, keys: &[String]) {
        for Part { text, rows } in &mut self.parts {
            rows.retain(|row| !keys.iter().any(|key| *key == text[row.start..][..row.key]));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Found> {
        self.parts.iter().flat_map(Part::iter)
    }
}

impl Part {
    fn push(&mut self, found: &Found) {
        let Found { key, value, owner, revision, expires } = found;
        let start = self.text.len();
        let mut put = |text: &str| {
            self.text.push_str(text);
            text.len()
        };
        let row = Row {
            start,
            key: put(key),
            value: match value {
                Ok(value) => Ok(put(value)),
                Err(reason) => Err(put(reason)),
            },
            owner: owner.as_ref().map(|owner| put(owner.as_str())),
            revision: *revision,
            expires: *expires,
        };
        self.rows.push(row);
    }

    fn iter(&self) -> impl Iterator<Item = Found> {
        self.rows.iter().map(|row| {
            let mut rest = &self.text[row.start..];
            let mut text = |len: usize| {
                let (text, behind) = rest.split_at(len);
                rest = behind;
                text.to_owned()
            };
            Found {
                key: text(row.key),
                value: row.value.map(&mut text).map_err(&mut text),
                owner: row.owner.and_then(|owner| NodeId::new(text(owner)).ok()),
                revision: row.revision,
                expires: row.expires,
            }
        })
    }
}

/// A key, a value of VXLAN, and a name.
const USUAL_BYTES: usize = 192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_there_until_it_is_removed() {
        let file = |key: &str, value: Result<&str, &str>| Found {
            key: key.into(),
            value: value.map(Into::into).map_err(Into::into),
            owner: value.is_ok().then(|| NodeId::new("n1").unwrap()),
            revision: 7,
            expires: Some(SystemTime::UNIX_EPOCH),
        };
        let (one, two) = (file("10.3.1.0-24", Ok("{}")), file("10.3.2.0-24", Err("why")));
        let (mut pile, mut other) = (Pile::default(), Pile::default());
        pile.push(&one);
        other.push(&two);
        pile.append(other);
        assert_eq!(pile.iter().collect::<Vec<_>>(), [one.clone(), two]);
        pile.remove(&["10.3.2.0-24".into(), "10.3.3.0-24".into()]);
        assert_eq!((pile.iter().collect::<Vec<_>>(), pile.len()), (vec![one], 1));
    }
}
