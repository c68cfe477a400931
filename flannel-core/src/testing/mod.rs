//! What tests of stores, backends and embedders share: mocks of the four traits.

pub use crate::{
    backend::{MockBackend, MockNetwork},
    store::{MockStore, MockSubnetLease},
};
