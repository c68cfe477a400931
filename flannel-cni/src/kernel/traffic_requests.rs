//! Limits of what a device sends and receives, as messages to the kernel.

use flannel_netlink::{Request, push_attribute, push_nested, push_text};

use super::{NLM_F_CREATE, NLM_F_EXCL};

/// How fast packets may come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Limit {
    pub(crate) bytes_per_second: u64,
    /// How much may come at once, after a while without any.
    pub(crate) burst_bytes: u32,
}

/// Has what a device sends wait until the limit allows it.
pub(crate) fn limit_sent(index: u32, limit: Limit) -> Request {
    let mut body = header(index, ROOT_HANDLE, TC_H_ROOT, 0);
    push_text(&mut body, TCA_KIND, "tbf");
    push_nested(&mut body, TCA_OPTIONS, |body| {
        let waiting = limit.bytes_per_second / WAITING_PER_SECOND;
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let most_waiting = waiting.saturating_add(limit.burst_bytes);
        let mut parameters = rate(limit);
        parameters.extend([0; RATE_BYTES]);
        // Of the burst in units of time, the attribute with bytes has precedence.
        parameters.extend([most_waiting, 0, 0].map(u32::to_ne_bytes).concat());
        push_attribute(body, TCA_TBF_PARMS, &parameters);
        push_attribute(body, TCA_TBF_RATE64, &limit.bytes_per_second.to_ne_bytes());
        push_attribute(body, TCA_TBF_BURST, &limit.burst_bytes.to_ne_bytes());
    });
    Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Drops what a device receives beyond the limit.
pub(crate) fn limit_received(index: u32, limit: Limit) -> [Request; 2] {
    let mut hook = header(index, TC_H_CLSACT & 0xffff_0000, TC_H_CLSACT, 0);
    push_text(&mut hook, TCA_KIND, "clsact");
    let mut filter = header(index, 0, TC_H_INGRESS, 1 << 16 | u32::from(ETH_P_ALL.to_be()));
    push_text(&mut filter, TCA_KIND, "matchall");
    push_nested(&mut filter, TCA_OPTIONS, |body| {
        push_nested(body, TCA_MATCHALL_ACT, |body| {
            push_nested(body, FIRST_ACTION, |body| push_police(body, limit));
        });
    });
    [
        Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &hook),
        Request::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &filter),
    ]
}

fn push_police(body: &mut Vec<u8>, limit: Limit) {
    // What the sender's kernel leaves to be split counts as one packet: a smaller burst would let none of it through.
    let burst = limit.burst_bytes.max(MOST_PACKET_BYTES);
    let burst_ns = u128::from(burst) * 1_000_000_000 / u128::from(limit.bytes_per_second);
    let burst_ticks = u32::try_from(burst_ns / TICK_NS).unwrap_or(u32::MAX);
    // `struct tc_police`
    let mut parameters = [0, TC_ACT_SHOT, 0, burst_ticks, u32::MAX].map(u32::to_ne_bytes).concat();
    parameters.extend(rate(limit));
    parameters.extend([0; RATE_BYTES + 12]);
    push_text(body, TCA_ACT_KIND, "police");
    push_nested(body, TCA_ACT_OPTIONS, |body| {
        push_attribute(body, TCA_POLICE_TBF, &parameters);
        // It has to be there, and is not looked into.
        push_attribute(body, TCA_POLICE_RATE, &[0; 1024]);
        push_attribute(body, TCA_POLICE_RATE64, &limit.bytes_per_second.to_ne_bytes());
    });
}

/// `struct tc_ratespec`; a rate that it has no room for is in an attribute besides.
fn rate(limit: Limit) -> Vec<u8> {
    let rate = u32::try_from(limit.bytes_per_second).unwrap_or(u32::MAX);
    [&[CELL_LOG, LINK_LAYER_ETHERNET, 0, 0, 0, 0, 0, 0][..], &rate.to_ne_bytes()].concat()
}

/// `struct tcmsg`.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, index, handle, parent, info].map(u32::to_ne_bytes).concat()
}

/// How much waits is what is sent in 25 ms, as with containernetworking's plugin.
const WAITING_PER_SECOND: u64 = 40;
/// The largest that a device of a pair hands on.
const MOST_PACKET_BYTES: u32 = 1 << 16;
/// `PSCHED_SHIFT` of net/pkt_sched.h: the unit of time of bursts is 2^6 ns.
const TICK_NS: u128 = 64;
const ROOT_HANDLE: u32 = 1 << 16;
/// The size of `struct tc_ratespec`.
const RATE_BYTES: usize = 12;
/// Any but 0 is fine.
const CELL_LOG: u8 = 3;

// linux/if_ether.h, linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_police.h
const ETH_P_ALL: u16 = 3;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_INGRESS: u32 = 0xffff_fff2;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_MATCHALL_ACT: u16 = 2;
const FIRST_ACTION: u16 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_POLICE_TBF: u16 = 1;
const TCA_POLICE_RATE: u16 = 2;
const TCA_POLICE_RATE64: u16 = 8;
const TC_ACT_SHOT: u32 = 2;
const LINK_LAYER_ETHERNET: u8 = 1;
