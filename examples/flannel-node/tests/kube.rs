//! Leases in Kubernetes: this program alone and beside the real flanneld, on hosts with an API server that has faults on demand.
#![expect(clippy::disallowed_methods, reason = "these tests are about the programs themselves")]

#[path = "kube/beside_flanneld.rs"]
mod beside_flanneld;
#[path = "kube/cluster.rs"]
mod cluster;
#[path = "kube/node_objects.rs"]
mod node_objects;
#[path = "kube/operators.rs"]
mod operators;
#[path = "kube/outages.rs"]
mod outages;
#[path = "kube/rights.rs"]
mod rights;
#[path = "kube/third_node.rs"]
mod third_node;
