//! Whole daemons on a real kernel.

#[path = "netns/embedder.rs"]
mod embedder;

#[path = "netns/orchestrators.rs"]
mod orchestrators;
