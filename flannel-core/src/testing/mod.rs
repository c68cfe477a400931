//! What tests of stores, backends and embedders share: mocks of the four traits, and a backend in memory.

mod fake;

pub use crate::{
    backend::{MockBackend, MockNetwork},
    store::{MockStore, MockSubnetLease},
};
pub use fake::{FakeBackend, FakeNetwork};
