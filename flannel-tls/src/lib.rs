//! TLS for clients of etcd and of Kubernetes: certificates as PEM, verification as Go's programs do it, and words for what is wrong
//! with a server's certificate.
#![forbid(unsafe_code)]

mod client;
mod flaw;
mod verifier;

pub use client::{Part, Pem, PemError};
pub use flaw::{Flaw, flaw};
