//! The words between a container runtime and a plugin, as of version 1.1 of the
//! [specification](https://www.cni.dev/docs/spec/) and back to 0.1.0. All of it is pure.

mod arguments;
mod attachment;
pub(crate) mod block;
mod config;
mod environment;
mod error;
mod result;
mod result_json;
mod version;

pub use arguments::Arguments;
pub use attachment::Attachment;
pub use config::Config;
pub(crate) use config::or_default;
pub(crate) use environment::interface_name_flaw;
pub use environment::{Environment, Verb};
pub use error::{Code, Error};
pub use result::{AddResult, Dns, Interface, Ip, Route};
pub use version::Version;
