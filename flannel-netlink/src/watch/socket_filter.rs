//! Which notifications the kernel queues at all, as classic BPF programs on a socket. What they
//! drop costs no memory, no system call and no wake-up.

use socket2::SockFilter;

use crate::{
    state::{
        RTM_DELNEIGH, RTM_DELNEXTHOP, RTM_DELROUTE, RTM_NEWNEIGH, RTM_NEWNEXTHOP, RTM_NEWROUTE,
    },
    wire::MESSAGE_HEADER,
};

/// Takes everything but routes to a destination longer than `::/0` or `0.0.0.0/0`.
pub(super) fn default_routes_only() -> [SockFilter; 7] {
    [
        load_kind(),
        jump_if(kind(RTM_NEWROUTE), 1, 0),
        jump_if(kind(RTM_DELROUTE), 0, 2),
        load(BYTE, DESTINATION_LENGTH),
        jump_if(0, 0, 1),
        TAKE,
        DROP,
    ]
}

/// Takes everything but what is told about routes, neighbours, forwarding entries and nexthop objects that `port` itself has changed.
pub(super) fn changes_of_others(port: u32) -> [SockFilter; 11] {
    [
        load(WORD, PORT),
        jump_if(u32::from_be_bytes(port.to_ne_bytes()), 0, 8),
        load_kind(),
        jump_if(kind(RTM_NEWROUTE), 5, 0),
        jump_if(kind(RTM_DELROUTE), 4, 0),
        jump_if(kind(RTM_NEWNEIGH), 3, 0),
        jump_if(kind(RTM_DELNEIGH), 2, 0),
        jump_if(kind(RTM_NEWNEXTHOP), 1, 0),
        jump_if(kind(RTM_DELNEXTHOP), 0, 1),
        DROP,
        TAKE,
    ]
}

fn load_kind() -> SockFilter {
    load(HALF, KIND)
}

/// A message type as a program sees it: in network byte order, which the kernel's is not.
fn kind(kind: u16) -> u32 {
    u16::from_be_bytes(kind.to_ne_bytes()).into()
}

/// Loads the number of this size at this offset. A message that is shorter is dropped.
const fn load(size: u16, offset: usize) -> SockFilter {
    SockFilter::new(size, 0, 0, offset as u32)
}

/// Skips so many instructions if the loaded number is this, so many otherwise.
const fn jump_if(equals: u32, then: u8, otherwise: u8) -> SockFilter {
    SockFilter::new(JUMP_EQUAL, then, otherwise, equals)
}

const TAKE: SockFilter = SockFilter::new(RETURN, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);

/// `nlmsg_type` in `struct nlmsghdr`.
const KIND: usize = 4;
/// `nlmsg_pid` in `struct nlmsghdr`.
const PORT: usize = 12;
/// `rtm_dst_len` in `struct rtmsg`.
const DESTINATION_LENGTH: usize = MESSAGE_HEADER + 1;

// linux/bpf_common.h: BPF_LD | BPF_ABS | size, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
const BYTE: u16 = 0x30;
const HALF: u16 = 0x28;
const WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
