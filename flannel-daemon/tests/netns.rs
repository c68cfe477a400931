//! Whole daemons on a real kernel.

#[path = "netns/embedder.rs"]
mod embedder;
