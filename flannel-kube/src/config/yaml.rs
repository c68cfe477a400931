//! YAML as JSON values, as far as kubeconfigs go: all scalars are texts.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The document in `text`. Aliases are refused, and so is nesting without end.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut document = None;
    let mut open: Vec<Open> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| format!("it is not YAML: {error}"))?;
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..)
                if matches!(&*text, "" | "~" | "null" | "Null" | "NULL") =>
            {
                Value::Null
            }
            Event::Scalar(text, ..) => Value::String(text.into_owned()),
            Event::Alias(_) => return Err("it has aliases, write what they stand for".into()),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEEPEST => {
                return Err(format!("it is nested more than {DEEPEST} levels deep"));
            }
            Event::SequenceStart(..) => {
                open.push(Open::Sequence(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::Sequence(values)) => Value::Array(values),
                Some(Open::Mapping(members, _)) => Value::Object(members),
                None => return Err("it is not YAML".into()),
            },
            Event::DocumentEnd => break,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {
                continue;
            }
        };
        match open.last_mut() {
            None => document = Some(value),
            Some(Open::Sequence(values)) => values.push(value),
            Some(Open::Mapping(members, key)) => match (key.take(), value) {
                (Some(key), value) => drop(members.insert(key, value)),
                (None, Value::String(text)) => *key = Some(text),
                (None, _) => return Err("a key in it is no text".into()),
            },
        }
    }
    document.ok_or_else(|| "it is empty".into())
}

/// What has begun and not ended.
enum Open {
    Mapping(Map<String, Value>, Option<String>),
    Sequence(Vec<Value>),
}

/// More than any kubeconfig has.
const DEEPEST: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_become_values_of_texts() {
        let text = "a: 1\nb: [x, 'y', true]\nc:\n- d: \"e\"\n  f:\n- |\n  g\n  h\n";
        let expected =
            json!({"a": "1", "b": ["x", "y", "true"], "c": [{"d": "e", "f": null}, "g\nh\n"]});
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(r#"{"a": {"b": null}}"#), Ok(json!({"a": {"b": null}})));
        for text in ["", "a: &x 1\nb: *x", "a: [", "[a: b: c", &"[".repeat(100), "? [a]\n: b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-c:\\[\\]{}&*!|>'\"#,?%@ \\n-]{0,60}", any in "\\PC{0,60}") {
            let _ = (parse(&text), parse(&any));
        }
    }
}
