//! The domain of a routed container network: config, subnets, leases, peers, allocation, the traits and the node that drives them.
#![forbid(unsafe_code)]
