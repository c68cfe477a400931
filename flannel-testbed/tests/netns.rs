//! Against the real kernel, each test with a testbed of its own.

#[path = "netns"]
mod netns {
    mod faults;
    mod probes;
    mod processes;
    mod snapshots;
    mod support;
    mod topology;
}
