//! On the real kernel, each test in namespaces of its own.

#[path = "netns/loopback.rs"]
mod loopback;
#[path = "netns/support.rs"]
mod support;
