//! Takes the answer to a list apart while it arrives, so that one object at a time is in memory.

/// A part of a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Piece<'a> {
    /// An element of `items`.
    Item(&'a [u8]),
    /// Another member of the list: its name with the quotes, and its value.
    Member(&'a [u8], &'a [u8]),
}

/// Splits a JSON object with a member `items`, in any chunks. It finds where values end; what is in them, their parser judges.
#[derive(Debug)]
pub(crate) struct ListSplitter {
    state: State,
    key: Vec<u8>,
    value: Vec<u8>,
    scan: Scan,
    in_items: bool,
    limit: usize,
}

/// Why an answer cannot be split.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SplitError {
    Malformed,
    Oversized,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Start,
    /// Before a member, or the end.
    Member,
    Key,
    Colon,
    /// Before a value.
    Before,
    Value,
    /// Before an element of `items`, or its end.
    Items,
    End,
}

/// How far into a value we are.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

/// What a byte is to a value.
enum Step {
    /// It belongs to the value.
    Inside,
    /// It is the value's last.
    Last,
    /// The value ended before it.
    After,
}

impl ListSplitter {
    /// A splitter that takes no value longer than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: State::Start,
            key: Vec::new(),
            value: Vec::new(),
            scan: Scan::default(),
            in_items: false,
            limit,
        }
    }

    /// Takes the next bytes, and gives each piece that is complete to `take`.
    pub(crate) fn push<E: From<SplitError>>(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            if !matches!(self.state, State::Key | State::Value) && byte.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            at += 1;
            self.state = match (self.state, byte) {
                (State::Start, b'{') | (State::Member, b',') => State::Member,
                (State::Member, b'"') => {
                    self.key.clear();
                    self.key.push(byte);
                    self.scan = Scan { in_string: true, ..Scan::default() };
                    State::Key
                }
                (State::Member, b'}') => State::End,
                (State::Key, _) => {
                    self.key.push(byte);
                    if self.key.len() > LONGEST_KEY {
                        return Err(SplitError::Oversized.into());
                    }
                    if self.scan.step(byte).is_last() { State::Colon } else { State::Key }
                }
                (State::Colon, b':') => State::Before,
                (State::Before, b'[') if self.key == br#""items""# => {
                    self.in_items = true;
                    State::Items
                }
                (State::Items, b',') => State::Items,
                (State::Items, b']') => {
                    self.in_items = false;
                    State::Member
                }
                (State::Before | State::Items, byte) if !b",:]}".contains(&byte) => {
                    self.value.clear();
                    self.scan = Scan::default();
                    at -= 1;
                    State::Value
                }
                (State::Value, _) => {
                    at -= 1;
                    let Some(taken) = self.value(&bytes[at..])? else { return Ok(()) };
                    at += taken;
                    let piece = match self.in_items {
                        true => Piece::Item(&self.value),
                        false => Piece::Member(&self.key, &self.value),
                    };
                    take(piece)?;
                    if self.in_items { State::Items } else { State::Member }
                }
                _ => return Err(SplitError::Malformed.into()),
            };
        }
        Ok(())
    }

    /// Whether the list was complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == State::End
    }

    /// Adds to the value what belongs to it; how many bytes that were, if it is complete.
    fn value(&mut self, bytes: &[u8]) -> Result<Option<usize>, SplitError> {
        for (at, byte) in bytes.iter().enumerate() {
            let end = match self.scan.step(*byte) {
                Step::Inside => continue,
                Step::Last => at + 1,
                Step::After => at,
            };
            self.extend(&bytes[..end])?;
            return Ok(Some(end));
        }
        self.extend(bytes)?;
        Ok(None)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), SplitError> {
        if self.value.len() + bytes.len() > self.limit {
            return Err(SplitError::Oversized);
        }
        self.value.extend_from_slice(bytes);
        Ok(())
    }
}

impl Scan {
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Step::Last;
                    }
                }
                _ => {}
            }
            return Step::Inside;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth == 0 => return Step::After,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Last;
                }
            }
            b',' if self.depth == 0 => return Step::After,
            _ => {}
        }
        Step::Inside
    }
}

impl Step {
    fn is_last(&self) -> bool {
        matches!(self, Self::Last)
    }
}

/// The members of a list have short names.
const LONGEST_KEY: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The items, and the other members.
    type Pieces = (Vec<Value>, Vec<(String, Value)>);

    /// The pieces of `text`, fed in chunks of `size` bytes.
    fn pieces(text: &str, size: usize) -> Result<Pieces, SplitError> {
        let (mut items, mut members) = (Vec::new(), Vec::new());
        let mut splitter = ListSplitter::new(1000);
        for chunk in text.as_bytes().chunks(size) {
            splitter.push(chunk, |piece| {
                let value =
                    |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|_| SplitError::Malformed);
                match piece {
                    Piece::Item(item) => items.push(value(item)?),
                    Piece::Member(key, member) => {
                        let Value::String(key) = value(key)? else { panic!("a key is a text") };
                        members.push((key, value(member)?));
                    }
                }
                Ok::<_, SplitError>(())
            })?;
        }
        if splitter.is_complete() { Ok((items, members)) } else { Err(SplitError::Malformed) }
    }

    #[test]
    fn a_list_is_taken_apart_in_any_chunks() {
        let text = r#" {"kind" : "NodeList", "metadata":{"resourceVersion":"7","a":"]}\"\\"},"n":1 ,
            "items":[{"a":"b]}\\\""} , [1,[2]],"x", 3 ],"last":null} "#;
        for size in 1..text.len() {
            let (items, members) = pieces(text, size).unwrap();
            assert_eq!(items, [json!({"a": "b]}\\\""}), json!([1, [2]]), json!("x"), json!(3)]);
            let keys: Vec<_> = members.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, ["kind", "metadata", "n", "last"]);
            assert_eq!(members[1].1["a"], json!("]}\"\\"));
        }
        assert_eq!(pieces(r#"{"items":[]}"#, 1), Ok((vec![], vec![])));
        assert_eq!(pieces(r#"{"items":null}"#, 1).unwrap().1, [("items".to_owned(), Value::Null)]);
    }

    #[test]
    fn what_is_no_list_or_too_long_is_refused() {
        for text in ["", "[]", "{", "{\"a\"}", "{\"a\":}", "{\"items\":[1}", "nothing", "{}x"] {
            assert_eq!(pieces(text, 1), Err(SplitError::Malformed), "{text}");
        }
        let long = format!(r#"{{"items":["{}"]}}"#, "x".repeat(1000));
        assert_eq!(pieces(&long, 7), Err(SplitError::Oversized));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "\\PC{0,8}|[\\[\\]{}\",\\\\]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_list_gives_its_items(
            items in prop::collection::vec(json_value(), 0..6),
            other in json_value(),
            size in 1..40_usize,
            pretty in any::<bool>(),
        ) {
            let list = json!({"a": other, "items": items, "z": other});
            let text = match pretty {
                true => serde_json::to_string_pretty(&list).unwrap(),
                false => list.to_string(),
            };
            let (found, members) = pieces(&text, size).unwrap();
            prop_assert_eq!(found, items);
            prop_assert_eq!(members.len(), 2);
        }

        #[test]
        fn no_bytes_panic(text in "[\\[\\]{}\",:\\\\a1 ]{0,60}", size in 1..8_usize) {
            let _ = pieces(&text, size);
        }
    }
}
