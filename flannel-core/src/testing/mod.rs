//! What tests of stores, backends and embedders share: mocks of the four traits, a
//! backend in memory, and the contracts as suites.

mod fake;
pub mod network;

pub use crate::{
    backend::{MockBackend, MockNetwork},
    store::{MockStore, MockSubnetLease},
};
pub use fake::{FakeBackend, FakeNetwork};
