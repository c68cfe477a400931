//! The program on real hosts, for what operators do with it beside running a node.

#[path = "netns/addresses.rs"]
mod addresses;
#[path = "netns/blackhole.rs"]
mod blackhole;
#[path = "netns/docker.rs"]
mod docker;
#[path = "netns/dropping.rs"]
mod dropping;
#[path = "netns/explain.rs"]
mod explain;
#[path = "netns/firewall.rs"]
mod firewall;
#[path = "netns/handover.rs"]
mod handover;
#[path = "netns/keep_traffic.rs"]
mod keep_traffic;
#[path = "netns/migrating.rs"]
mod migrating;
#[path = "netns/migration.rs"]
mod migration;
#[path = "netns/narrowing.rs"]
mod narrowing;
#[path = "netns/plugins.rs"]
mod plugins;
#[path = "netns/privileges.rs"]
mod privileges;
#[path = "netns/probes.rs"]
mod probes;
#[path = "netns/renumbering.rs"]
mod renumbering;
#[path = "netns/support.rs"]
mod support;
