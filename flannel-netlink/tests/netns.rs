//! Against the real kernel, each test in namespaces of its own.

#[path = "netns"]
mod netns {
    mod connection;
    mod namespace;
}
