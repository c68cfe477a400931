//! Rules on a real kernel, looked at by packets and by the tools of others.

#[path = "netns/backend.rs"]
mod backend;
#[path = "netns/inspect.rs"]
mod inspect;
#[path = "netns/modes.rs"]
mod modes;
#[path = "netns/packets.rs"]
mod packets;
#[path = "netns/repair.rs"]
mod repair;
#[path = "netns/runs.rs"]
mod runs;
#[path = "netns/settings.rs"]
mod settings;
#[path = "netns/world.rs"]
mod world;
