//! What is made of command lines, and the documents that show them.

#[path = "command_line/documents.rs"]
mod documents;
#[path = "command_line/flanneld_flags.rs"]
mod flanneld_flags;
#[path = "../src"]
#[expect(dead_code, unused_imports, reason = "the program uses the rest")]
mod program {
    pub(crate) mod args;
}
#[path = "command_line/spellings.rs"]
mod spellings;

use program::args;
