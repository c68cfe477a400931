//! What the udp backend says of its packets, for people.

use serde_json::Value;

/// Names of lines, and what is on them.
pub(super) fn lines(udp: &Value) -> Vec<(&'static str, String)> {
    if udp.is_null() {
        return Vec::new();
    }
    let engine = match (udp["engine"].as_str(), udp["ebpf_refused"].as_str()) {
        (None, _) => "none yet".into(),
        (Some(engine), Some(why)) => format!("{engine}, because not ebpf: {why}"),
        (Some(engine), None) => engine.into(),
    };
    let mut lines = vec![("engine", engine)];
    let missing = udp["missing"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(missing.map(|missing| ("  without", missing.to_owned())));
    let side = |key: &str| format!("{} packets, {} bytes", udp[key]["packets"], udp[key]["bytes"]);
    lines.push(("traffic", format!("sent {}; received {}", side("sent"), side("received"))));
    let dropped = udp["dropped"].as_object().into_iter().flatten();
    let dropped: Vec<_> = dropped.map(|(why, count)| format!("{why} {count}")).collect();
    if !dropped.is_empty() {
        lines.push(("dropped", dropped.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_and_what_was_dropped_is_named() {
        assert_eq!(lines(&json!({ "engine": null }))[0], ("engine", "none yet".into()));
        let mut document = json!({
            "engine": "userspace", "ebpf_refused": "not permitted",
            "missing": ["large UDP packets through the device: needs Linux 6.2"],
            "sent": { "packets": 44, "bytes": 65000 }, "received": { "packets": 0, "bytes": 0 },
            "dropped": { "loop": 1, "spoofed_source": 2 },
        });
        let expected = [
            ("engine", "userspace, because not ebpf: not permitted"),
            ("  without", "large UDP packets through the device: needs Linux 6.2"),
            ("traffic", "sent 44 packets, 65000 bytes; received 0 packets, 0 bytes"),
            ("dropped", "loop 1, spoofed_source 2"),
        ];
        assert_eq!(lines(&document), expected.map(|(name, text)| (name, text.to_owned())));
        assert!(lines(&Value::Null).is_empty());
        document["engine"] = "ebpf".into();
        document["ebpf_refused"] = Value::Null;
        assert_eq!(lines(&document)[0], ("engine", "ebpf".to_owned()));
    }
}
