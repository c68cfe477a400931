//! The eBPF engine: the kernel itself carries the packets.
//!
//! Two tc programs (bpf/udp.bpf.c) and their maps. `flannel_encap`, on the egress of the tunnel device, sees a packet after routing and
//! NAT, encapsulates it in one piece however large it is, and sends it to the next hop of the kernel's route to the peer.
//! `flannel_decap`, on the ingress of the uplink, decapsulates what peers send and has the tunnel device receive it, where conntrack
//! and the firewall see it. One map says where each block is reached; a changed peer is one changed entry.
//!
//! Whatever the programs do not handle continues as if they were not there, to the userspace engine behind the tunnel device and the
//! socket: packets to nobody, packets larger than the path takes, fragmented or joined datagrams, IP options, an expired TTL, garbage,
//! and packets to peers that read a socket. Those need checksums finished and large packets segmented before they are encapsulated:
//! over veth and virtio neither happens afterwards, and a socket would be given the unfinished packet. So a node whose engine is eBPF
//! publishes that, and all others are sent to by the userspace engine.
//!
//! The socket must not ask for UDP_GRO meanwhile, as the kernel would join datagrams before the filter sees them. An IPv6 socket has to
//! take datagrams without checksum (`UDP_NO_CHECK6_RX`).
//!
//! The filters keep programs and maps while no process runs. The next process loads new ones, fills their maps, and replaces the
//! filters, each in one step, so that there is no packet without a program. They hang on clsact qdiscs, although a device drops packets
//! while it gets its first, and not on tcx links: such a link ends with the process unless it is pinned in a bpffs, which containers
//! rarely have. A program attached to tcx without a link would stay, but aya attaches to tcx by links only.

mod engine;
mod error;
mod hook;
mod layout;
mod programs;

pub(crate) use self::{
    engine::{Engine, Meter, remove_leftover},
    error::BpfError,
    hook::Owner,
    programs::{Counts, try_load},
};
