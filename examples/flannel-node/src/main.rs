//! The daemon: a flannel node made of the crates of this project.
#![forbid(unsafe_code)]

fn main() {}
