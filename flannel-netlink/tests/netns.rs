//! Against the real kernel, each test in namespaces of its own.

#[path = "netns/connection.rs"]
mod connection;
#[path = "netns/features.rs"]
mod features;
#[path = "netns/iface.rs"]
mod iface;
#[path = "netns/links.rs"]
mod links;
#[path = "netns/namespace.rs"]
mod namespace;
#[path = "netns/objects.rs"]
mod objects;
#[path = "netns/support.rs"]
mod support;
#[path = "netns/table.rs"]
mod table;
#[path = "netns/watch.rs"]
mod watch;
