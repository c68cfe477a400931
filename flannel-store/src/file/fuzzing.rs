//! Parsers that nothing public reaches without a disk.

use super::lease_file::Entry;

/// A lease file as it would be written again; `None` if it is none.
pub fn reprint(bytes: &[u8]) -> Option<String> {
    Some(Entry::parse(bytes).ok()?.print())
}
