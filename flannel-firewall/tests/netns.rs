//! Rules on a real kernel, looked at by packets and by the tools of others.

#[path = "netns/backend.rs"]
mod backend;
#[path = "netns/drop_warnings.rs"]
mod drop_warnings;
#[path = "netns/fallback.rs"]
mod fallback;
#[path = "netns/findings.rs"]
mod findings;
#[path = "netns/modes.rs"]
mod modes;
#[path = "netns/networks.rs"]
mod networks;
#[path = "netns/packets.rs"]
mod packets;
#[path = "netns/reload.rs"]
mod reload;
#[path = "netns/repair.rs"]
mod repair;
#[path = "netns/runs.rs"]
mod runs;
#[path = "netns/settings.rs"]
mod settings;
#[path = "netns/transactions.rs"]
mod transactions;
#[path = "netns/transitions.rs"]
mod transitions;
#[path = "netns/world.rs"]
mod world;
