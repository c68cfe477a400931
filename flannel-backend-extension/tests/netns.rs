//! Commands that do what host-gw does, on a real kernel.

#[path = "netns"]
mod netns {
    mod commands;
    mod contract;
    mod support;
}
