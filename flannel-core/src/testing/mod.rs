//! What tests of stores, backends and embedders share: mocks of the four traits, a backend in
//! memory, and the suites that state the contracts of stores and networks.

mod fake;
pub mod network;
mod polled;
pub mod store_contract;

pub use crate::{
    backend::{MockBackend, MockNetwork},
    store::{MockStore, MockSubnetLease},
};
pub use fake::{FakeBackend, FakeNetwork};
pub use polled::polled;
pub use store_contract::{Entry, StoreFixture};
