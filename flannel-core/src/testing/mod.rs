//! What tests of stores, backends and embedders share: mocks of the four traits, and the suites that state their contracts.

pub mod store;

pub use store::{Entry, StoreFixture};

pub use crate::{
    backend::{MockBackend, MockNetwork},
    store::{MockStore, MockSubnetLease},
};
