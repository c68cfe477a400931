//! A small client of the Kubernetes API, for programs that watch many objects and keep little of each.
//!
//! * [`ClientConfig`] says which API server to talk to, and as whom: as the pod that this process runs in, or as a kubeconfig says.
//! * [`Client`] makes requests. Nothing of an answer is kept that was not asked for: lists are taken apart while they arrive, and
//!   a watch holds one event at a time.
//! * [`Reflector`] follows all objects of one kind, and keeps what a [`Projection`] makes of each. Nodes may come in protobuf.
//!
//! All of it works on the caller's task: there are no background tasks, and dropping a future or a reflector ends its connections.
#![forbid(unsafe_code)]

mod client;
mod config;
mod dial;
mod error;
mod exchange;
mod frames;
mod leading;
mod list;
mod list_splitter;
mod objects;
mod protobuf;
mod reflector;
mod request;
mod socket;
mod watch;

/// What is parsed of an API server's answers, for fuzzers.
pub mod fuzzing;

pub use client::Client;
pub use config::{ClientConfig, ConfigError, Credentials, Secret, Source};
pub use error::{ApiStatus, Reason, RequestError};
pub use objects::{ConditionView, MetadataOf, NodeSpecView, NodeStatusView, NodeView, ObjectMeta};
pub use reflector::{Merged, Projection, Reflection, Reflector, ReflectorOptions};
pub use request::{Resource, Verb};
