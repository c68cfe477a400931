//! The eBPF engine: the kernel itself carries the packets.
//!
//! Programs (bpf/udp.bpf.c) and their maps. The route of the network runs `flannel_send` on what leaves by the tunnel device: it
//! puts the outer headers in front and routes the packet anew, in one piece however large it is. A filter on the network card runs
//! `flannel_receive`: it takes them away and hands the packet to the tunnel device, as if it had come out of it. One map says where
//! each block is reached; a changed peer is one changed entry.
//!
//! TCP packets make a detour on that way, through the kernel's own unpacking; see [`detour`]. Routers on the way may say that a
//! packet is too large; see [`paths`].
//!
//! All take the usual case alone. The rest goes on as if they were not there, to the userspace engine behind the tunnel device and
//! the socket: packets to nobody, packets larger than the path takes, large UDP packets that the kernel cannot cut inside of UDP,
//! fragments, IP options, a TTL at its end, garbage. Only what strangers send ends in `flannel_receive`, and is counted. The socket
//! must not ask for UDP_GRO meanwhile: the kernel would join datagrams before the filter sees them, and joined ones go on to the
//! socket. An IPv6 socket has to take datagrams without checksum (`UDP_NO_CHECK6_RX`), as flannel_send leaves it out there.
//!
//! The kernel's references from the route and the filter keep programs and maps while no process runs, and the next process takes
//! them over. Programs of another version are taken for none: new ones with new maps are loaded, filled, and put into the places of
//! the old ones, each in one step, so that there is no packet without a program.
//!
//! Without aya: it knows no lightweight tunnel programs, and all that remains of it here is to read our own object file.

mod alarm;
mod content;
mod detour;
mod engine;
mod error;
mod hook;
mod layout;
mod object;
mod paths;
mod programs;
#[expect(unsafe_code, reason = "bpf(2) takes addresses, and neither rustix nor nix has it")]
mod sys;
mod trial;

pub(crate) use self::{
    engine::{Engine, Marks, Meter, remove_leftover},
    error::BpfError,
    layout::Counts,
};
