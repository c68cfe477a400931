//! Strategic merge patches, as far as they concern nodes.

use serde_json::Value;

/// Merges `patch` into `object`: members one by one, `null` removes, conditions by their type, other lists as a whole.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(serde_json::Map::new());
    }
    let Some(target) = object.as_object_mut() else { return };
    for (name, value) in members {
        match value {
            Value::Null => drop(target.remove(name)),
            Value::Array(items) if name == "conditions" => {
                let known = target.entry(name.as_str()).or_insert_with(|| Value::Array(Vec::new()));
                let Some(known) = known.as_array_mut() else { continue };
                for item in items {
                    match known.iter_mut().find(|it| it["type"] == item["type"]) {
                        Some(known) => merge(known, item),
                        None => known.push(item.clone()),
                    }
                }
            }
            value => merge(target.entry(name.as_str()).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_merge_conditions_merge_by_type_and_null_removes() {
        let mut node = json!({
            "metadata": {"annotations": {"a": "1", "b": "2"}},
            "spec": {"podCIDRs": ["x"]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]},
        });
        let patch = json!({
            "metadata": {"annotations": {"b": null, "c": "3"}},
            "spec": {"podCIDRs": ["y", "z"]},
            "status": {"conditions": [
                {"type": "NetworkUnavailable", "status": "False"},
                {"type": "Ready", "status": "False"},
            ]},
        });
        merge(&mut node, &patch);
        let expected = json!({
            "metadata": {"annotations": {"a": "1", "c": "3"}},
            "spec": {"podCIDRs": ["y", "z"]},
            "status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "r"},
                {"type": "NetworkUnavailable", "status": "False"},
            ]},
        });
        assert_eq!(node, expected);
    }
}
