//! A real etcd: the contract of a store, flannel beside us, faults, and what errors say.
//!
//! These tests need the programs `etcd`, `etcdctl` and `openssl`.

mod answers;
mod certificates;
mod cluster;
mod contract;
mod errors;
mod faults;
mod flannel;
mod permissions;
mod proxy;
mod racing;
mod tls;
mod watcher;
