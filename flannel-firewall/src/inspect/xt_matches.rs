//! Matches and targets of iptables where nf_tables keeps its rules.

use super::{
    packet::{Direction, Flow, PacketPath},
    ternary::Ternary,
    walk::Step,
};

/// What a target does to packets.
pub(super) fn target(name: &str) -> Step {
    match name {
        "ACCEPT" => Step::Accept,
        "DROP" | "REJECT" => Step::Drop,
        "MASQUERADE" | "NETMAP" | "SNAT" => Step::Masquerade,
        "RETURN" => Step::Return,
        _ => Step::Continue,
    }
}

/// What a match says about the first packet of a flow, which has no mark. `info` is the kernel's structure.
pub(super) fn holds(name: &str, info: &[u8], path: &PacketPath) -> Ternary {
    let word = |at: usize| Some(u32::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let bounds = |port: u16, at: usize| Some((half(at)?..=half(at + 2)?).contains(&port));
    let known = match name {
        // struct xt_addrtype_info_v1: source, destination, flags, of which two negate and two ask for a device.
        "addrtype" => {
            half(0).zip(half(2)).zip(word(4)).and_then(|((source, destination), flags)| {
                (flags & !0b11 == 0).then(|| {
                    let of = |types: u16, is_local: bool| {
                        types == 0 || types & if is_local { TYPE_LOCAL } else { TYPE_UNICAST } != 0
                    };
                    let from = of(source, path.direction == Direction::Sent);
                    let to = of(destination, path.direction == Direction::Received);
                    (from != (flags & 1 != 0)) && (to != (flags & 2 != 0))
                })
            })
        }
        // struct xt_mark_mtinfo1: mark, mask, invert.
        "connmark" | "mark" => {
            word(0).zip(info.get(8)).map(|(mark, invert)| (mark == 0) != (*invert != 0))
        }
        // struct xt_conntrack_mtinfo3, of which only the state is looked at.
        "conntrack" if half(CONNTRACK_FLAGS) == Some(XT_CONNTRACK_STATE) => {
            let inverted = half(CONNTRACK_FLAGS + 2).map(|flags| flags & XT_CONNTRACK_STATE != 0);
            let states = half(CONNTRACK_FLAGS + 4).map(|states| states & XT_STATE_NEW != 0);
            states.zip(inverted).map(|(new, inverted)| new != inverted)
        }
        // struct xt_multiport_v1: which side, how many, 15 ports, 15 flags whether a range begins, invert.
        "multiport" => path.flow.and_then(|flow| multiport(info, flow)),
        // struct xt_state_info.
        "state" => word(0).map(|states| states & u32::from(XT_STATE_NEW) != 0),
        // struct xt_tcp: bounds of both ports, option, flags' mask, flags, invert.
        "tcp" => path.flow.and_then(|flow| {
            let [option, mask, flags, invert] = *info.get(8..)?.first_chunk()?;
            let source = bounds(flow.source_port, 0)? != (invert & 1 != 0);
            let destination = bounds(flow.destination_port, 4)? != (invert & 2 != 0);
            let flags = (SYN & mask == flags) != (invert & 4 != 0);
            (option == 0).then_some(source && destination && flags)
        }),
        // struct xt_udp: bounds of both ports, invert.
        "udp" => path.flow.and_then(|flow| {
            let invert = *info.get(8)?;
            let source = bounds(flow.source_port, 0)? != (invert & 1 != 0);
            Some(source && bounds(flow.destination_port, 4)? != (invert & 2 != 0))
        }),
        _ => None,
    };
    known.map_or(Ternary::Unknown, Ternary::from)
}

fn multiport(info: &[u8], flow: Flow) -> Option<bool> {
    let (side, count) = (*info.first()?, usize::from(*info.get(1)?).min(PORTS));
    let port = |at: usize| Some(u16::from_ne_bytes(*info.get(2 + 2 * at..)?.first_chunk()?));
    let has = |wanted: u16| {
        let mut at = 0;
        while at < count {
            let begins_range = *info.get(2 + 2 * PORTS + at)? != 0;
            let last = if begins_range { port(at + 1)? } else { port(at)? };
            if (port(at)?..=last).contains(&wanted) {
                return Some(true);
            }
            at += 1 + usize::from(begins_range);
        }
        Some(false)
    };
    let found = match side {
        0 => has(flow.source_port)?,
        1 => has(flow.destination_port)?,
        _ => has(flow.source_port)? || has(flow.destination_port)?,
    };
    Some(found != (*info.get(2 + 3 * PORTS)? != 0))
}

/// `XT_MULTI_PORTS` of linux/netfilter/xt_multiport.h.
const PORTS: usize = 15;
/// The flag of a segment that begins a connection.
const SYN: u8 = 2;

// linux/netfilter/xt_addrtype.h
const TYPE_UNICAST: u16 = 1 << 1;
const TYPE_LOCAL: u16 = 1 << 2;

// linux/netfilter/xt_conntrack.h
/// Where `match_flags` is: behind eight addresses, two times, and five numbers of protocol and ports.
const CONNTRACK_FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
const XT_CONNTRACK_STATE: u16 = 1;
const XT_STATE_NEW: u16 = 1 << 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path() -> PacketPath {
        let [from, to] =
            ["10.244.7.2", "10.244.8.2"].map(|ip| ip.parse::<ipnetwork::IpNetwork>().unwrap());
        let flow = Flow { protocol: 6, source_port: 40_000, destination_port: 15_000 };
        PacketPath::new(Direction::Forwarded, from, to).carrying(flow)
    }

    fn ranges(bounds: [u16; 4], rest: &[u8]) -> Vec<u8> {
        [bounds.map(u16::to_ne_bytes).concat(), rest.to_vec()].concat()
    }

    #[test]
    fn a_new_flow_has_no_mark_and_its_own_ports() {
        let holds = |name: &str, info: &[u8]| holds(name, info, &path());
        let mark = [0x4000_u32.to_ne_bytes(), 0x4000_u32.to_ne_bytes(), [0; 4]].concat();
        assert_eq!(holds("mark", &mark), Ternary::False);
        assert_eq!(holds("mark", &[0; 3]), Ternary::Unknown);
        assert_eq!(holds("conntrack", &[0; 164]), Ternary::Unknown);
        assert_eq!(holds("limit", &[0; 40]), Ternary::Unknown);
        let any = u16::MAX;
        assert_eq!(holds("tcp", &ranges([0, any, 15_000, 15_000], &[0; 4])), Ternary::True);
        assert_eq!(holds("tcp", &ranges([0, any, 80, 80], &[0; 4])), Ternary::False);
        assert_eq!(holds("tcp", &ranges([0, any, 80, 80], &[0, 0, 0, 2])), Ternary::True);
        assert_eq!(holds("tcp", &ranges([0, any, 0, any], &[0, 0x17, 2, 0])), Ternary::True, "SYN");
        assert_eq!(
            holds("tcp", &ranges([0, any, 0, any], &[0, 0x17, 2, 4])),
            Ternary::False,
            "not SYN"
        );
        assert_eq!(holds("udp", &ranges([0, any, 53, 53], &[0; 2])), Ternary::False);
        let mut ports = [0; 48];
        ports[..2].copy_from_slice(&[1, 3]);
        for (at, port) in [22_u16, 14_000, 16_000].into_iter().enumerate() {
            ports[2 + 2 * at..4 + 2 * at].copy_from_slice(&port.to_ne_bytes());
        }
        assert_eq!(holds("multiport", &ports), Ternary::False);
        ports[2 + 2 * PORTS + 1] = 1;
        assert_eq!(holds("multiport", &ports), Ternary::True, "from 14000 to 16000");
        let to_local = ranges([0, TYPE_LOCAL, 0, 0], &[]);
        assert_eq!(holds("addrtype", &to_local), Ternary::False, "it is forwarded");
        let not_to_local = [&[0, 0, 4, 0][..], &2_u32.to_ne_bytes()].concat();
        assert_eq!(holds("addrtype", &not_to_local), Ternary::True);
    }

    proptest! {
        #[test]
        fn no_structure_panics(
            name in prop::sample::select(vec!["addrtype", "conntrack", "mark", "multiport", "state", "tcp", "udp", "x"]),
            info in prop::collection::vec(any::<u8>(), 0..170),
        ) {
            let _ = holds(name, &info, &path());
        }
    }
}
