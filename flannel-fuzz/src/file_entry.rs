use flannel_store::fuzzing::reprint;

/// A lease file of a folder: what is read prints as something that reads the same and prints the same.
pub fn file_entry(bytes: &[u8]) {
    let Some(printed) = reprint(bytes) else { return };
    assert_eq!(reprint(printed.as_bytes()).as_ref(), Some(&printed));
}
