use flannel_kube::fuzzing::{list, watch};

/// What an API server answers: however it is cut into pieces, the same comes out.
pub fn kube(bytes: &[u8]) {
    let whole = list(bytes, bytes.len());
    assert_eq!(whole, list(bytes, 7));
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(bytes);
    // Whoever names a member twice is taken at every word.
    let twice = bytes.windows(7).filter(|it| *it == b"\"items\"").count() > 1;
    if let (Ok(parsed), false) = (parsed, twice)
        && let Some(items) = parsed.get("items").and_then(serde_json::Value::as_array)
        && let Some(whole) = whole
    {
        let found: Vec<serde_json::Value> =
            whole.iter().map(|item| serde_json::from_slice(item).expect("an item")).collect();
        assert_eq!(&found, items);
    }
    for is_protobuf in [false, true] {
        assert_eq!(watch(bytes, bytes.len(), is_protobuf), watch(bytes, 7, is_protobuf));
    }
}
