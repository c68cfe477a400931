//! What goes wrong around nodes that run for long: real stores, real nodes, real packets.

#[path = "faults"]
mod faults {
    mod etcd;
    mod etcd_accidents;
    mod etcd_members;
    mod folder_accidents;
    mod slow_resolver;
    mod soak;
    mod trial;
}
