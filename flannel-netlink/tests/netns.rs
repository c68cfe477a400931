//! Against the real kernel, each test in namespaces of its own.

#[path = "netns/batches.rs"]
mod batches;
#[path = "netns/features.rs"]
mod features;
#[path = "netns/interface_choice.rs"]
mod interface_choice;
#[path = "netns/links.rs"]
mod links;
#[path = "netns/monitors.rs"]
mod monitors;
#[path = "netns/namespaces.rs"]
mod namespaces;
#[path = "netns/objects.rs"]
mod objects;
#[path = "netns/support.rs"]
mod support;
#[path = "netns/table_sync.rs"]
mod table_sync;
