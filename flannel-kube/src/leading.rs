//! Reads the first members of an object and looks at nothing behind them: most of a Node comes after what is wanted.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::objects::{MetadataOf, NodeSpecView, NodeView, ObjectMeta};

impl<'a> MetadataOf<'a> {
    /// The metadata of an object of any kind. What follows it is not looked at.
    ///
    /// # Errors
    ///
    /// If the object is none, as far as it is read.
    pub fn read(object: &'a str) -> Result<Self, serde_json::Error> {
        read(object, false).map(|(metadata, _)| Self { metadata })
    }
}

impl<'a> NodeView<'a> {
    /// A Node without its status. What follows metadata and `spec` is not looked at.
    ///
    /// # Errors
    ///
    /// If the object is none, as far as it is read.
    pub fn without_status(object: &'a str) -> Result<Self, serde_json::Error> {
        let (metadata, spec) = read(object, true)?;
        Ok(Self { metadata, spec, ..Self::default() })
    }
}

fn read(
    object: &str,
    with_spec: bool,
) -> Result<(ObjectMeta<'_>, NodeSpecView<'_>), serde_json::Error> {
    let mut members = Members { metadata: None, spec: None, with_spec, complete: false };
    let outcome = serde_json::Deserializer::from_str(object).deserialize_map(&mut members);
    // An object that is left in the middle is an error to the parser.
    if !members.complete {
        outcome?;
        return Err(serde_json::Error::custom("it is no object"));
    }
    Ok((members.metadata.unwrap_or_default(), members.spec.unwrap_or_default()))
}

struct Members<'a> {
    metadata: Option<ObjectMeta<'a>>,
    spec: Option<NodeSpecView<'a>>,
    with_spec: bool,
    complete: bool,
}

impl<'a> Visitor<'a> for &mut Members<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'a, str>>()? {
            match &*name {
                "metadata" if self.with_spec => self.metadata = Some(map.next_value()?),
                "metadata" => {
                    let mut wanted = WantedMeta::default();
                    let outcome = map.next_value_seed(&mut wanted);
                    // If all was there, it may have been left in the middle.
                    if !wanted.is_complete() {
                        outcome?;
                    }
                    self.metadata = Some(wanted.metadata);
                }
                "spec" if self.with_spec => {
                    self.spec =
                        map.next_value::<Option<_>>()?.or_else(|| Some(NodeSpecView::default()));
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            if self.metadata.is_some() && (self.spec.is_some() || !self.with_spec) {
                break;
            }
        }
        self.complete = true;
        Ok(())
    }
}

/// Metadata up to the last wanted member: `managedFields`, which are most of it, come after that.
#[derive(Default)]
struct WantedMeta<'a> {
    metadata: ObjectMeta<'a>,
    /// A bit for each wanted member that was there.
    found: u8,
}

impl WantedMeta<'_> {
    fn is_complete(&self) -> bool {
        self.found == 0b1111
    }
}

impl<'a> DeserializeSeed<'a> for &mut WantedMeta<'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for &mut WantedMeta<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object's metadata")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while !self.is_complete()
            && let Some(Text(name)) = map.next_key()?
        {
            let metadata = &mut self.metadata;
            let (text, bit) = match &*name {
                "name" => (&mut metadata.name, 0b1),
                "uid" => (&mut metadata.uid, 0b10),
                "resourceVersion" => (&mut metadata.resource_version, 0b100),
                "annotations" => {
                    let all: Option<BTreeMap<Text<'_>, Text<'_>>> = map.next_value()?;
                    let pairs =
                        all.into_iter().flatten().map(|(Text(key), Text(text))| (key, text));
                    metadata.annotations = pairs.collect();
                    self.found |= 0b1000;
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            Text(*text) = map.next_value()?;
            self.found |= bit;
        }
        Ok(())
    }
}

/// A text that is borrowed if it can be, also in a map.
#[derive(Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_found_in_any_order_and_nothing_behind_it_is_read() {
        let metadata = r#""metadata":{"name":"n","uid":"u","managedFields":[{}]}"#;
        let spec = r#""spec":{"podCIDR":"10.244.1.0/24"}"#;
        for object in [
            format!(r#"{{"kind":"Node",{metadata},{spec},"status":{{"images":[1,2]}}}}"#),
            format!(r#"{{{spec},"status":{{"images":[1,2]}},{metadata}}}"#),
            format!(r#"{{{metadata},{spec},"status":nonsense"#),
        ] {
            let node = NodeView::without_status(&object).unwrap();
            assert_eq!((&*node.metadata.name, &*node.spec.pod_cidr), ("n", "10.244.1.0/24"));
            assert_eq!(MetadataOf::read(&object).unwrap().metadata, node.metadata);
        }
        let bare = format!("{{{metadata},\"spec\":null}}");
        let bare = NodeView::without_status(&bare).unwrap();
        assert_eq!(bare.spec, NodeSpecView::default());
        for object in ["", "[]", "7", "{", r#"{"metadata":7}"#, r#"{"metadata":{"name":"n"}"#] {
            assert!(NodeView::without_status(object).is_err(), "{object}");
        }
    }
    #[test]
    fn metadata_is_the_same_in_any_order_and_with_members_missing() {
        let members = [
            r#""name":"n\u0061""#,
            r#""labels":{"name":"other"}"#,
            r#""uid":"u""#,
            r#""annotations":{"a":"1","b\"":"\n"}"#,
            r#""resourceVersion":"7""#,
            r#""managedFields":[{"name":"x"}]"#,
        ];
        for first in 0..members.len() {
            for count in 0..=members.len() {
                let mut turned = members;
                turned.rotate_left(first);
                let object =
                    format!(r#"{{"metadata":{{{}}},"spec":{{}}}}"#, turned[..count].join(","));
                let expected: MetadataOf<'_> = serde_json::from_str(&object).unwrap();
                assert_eq!(MetadataOf::read(&object).unwrap(), expected, "{object}");
            }
        }
        let none = MetadataOf::read(r#"{"metadata":{"name":"n","annotations":null}}"#).unwrap();
        assert!(none.metadata.annotations.is_empty());
        let odd = format!(r#"{{"metadata":{{{}"#, members.join(",").replace("[{", "[{,"));
        let read = MetadataOf::read(&odd).unwrap();
        assert_eq!(read.metadata.resource_version, "7", "nothing behind it is read");
    }
}
