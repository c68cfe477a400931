//! What the sender of a packet is told when it cannot be carried.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use flannel_tunnel::{
    checksum,
    wire::{self, Ip},
};

/// What is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Problem {
    /// No peer has the destination.
    NoRoute,
    /// The packet is larger than this many bytes, and must not be cut.
    TooBig(u32),
}

/// The answer to the sender of `offender`, from the address of our device; `None` if there must be none.
pub(crate) fn answer(offender: &Ip<'_>, problem: Problem, from: IpAddr) -> Option<Vec<u8>> {
    if !may_be_answered(offender, problem) {
        return None;
    }
    match (offender, from) {
        (Ip::V4(v4), IpAddr::V4(from)) => Some(answer4(offender, v4.source(), problem, from)),
        (Ip::V6(v6), IpAddr::V6(from)) => Some(answer6(offender, v6.source(), problem, from)),
        _ => None,
    }
}

/// RFC 1122 section 3.2.2 and RFC 4443 section 2.4, and what flannel does.
fn may_be_answered(offender: &Ip<'_>, problem: Problem) -> bool {
    let payload = offender.payload();
    let to_one = |ip: IpAddr| {
        !(ip.is_multicast() || ip.is_unspecified() || ip.is_loopback())
            && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    if !to_one(offender.source()) || !to_one(offender.destination()) {
        return false;
    }
    match offender {
        Ip::V4(v4) => {
            // Mirrors send_net_unreachable in pkg/backend/udp/proxy_amd64.c at cdf76059: never to ICMP of any type, nor if the
            // header is of the largest size. A ping has to learn of a small path, so that only skips errors.
            let silent = match problem {
                Problem::NoRoute => v4.protocol() == wire::ICMP || v4.header_len() >= MAX_HEADER,
                Problem::TooBig(_) => {
                    v4.protocol() == wire::ICMP
                        && !payload.first().is_some_and(|kind| ICMP_QUERIES.contains(kind))
                }
            };
            v4.fragment_offset() == 0 && !silent
        }
        Ip::V6(_) => {
            let is_error = offender.protocol() == wire::ICMPV6
                && payload.first().is_none_or(|kind| *kind < ICMPV6_FIRST_QUERY);
            // The part of a fragment that is not the first does not say whether it is of an error.
            let is_later_fragment = offender.protocol() == wire::FRAGMENT_HEADER
                && payload.get(2..4).is_none_or(|at| wire::u16_at(at, 0) & 0xfff8 != 0);
            !is_error && !is_later_fragment
        }
    }
}

fn answer4(offender: &Ip<'_>, to: Ipv4Addr, problem: Problem, from: Ipv4Addr) -> Vec<u8> {
    let (code, mtu) = match problem {
        Problem::NoRoute => (NET_UNREACHABLE, 0),
        Problem::TooBig(mtu) => (FRAGMENTATION_NEEDED, mtu),
    };
    // The header and the first eight bytes, RFC 792.
    let quoted = offender.bytes().len().min(offender.header_len() + 8);
    let mut message = vec![DESTINATION_UNREACHABLE, code, 0, 0, 0, 0];
    message.extend((mtu.min(u16::MAX.into()) as u16).to_be_bytes());
    message.extend(&offender.bytes()[..quoted]);
    let checksum = !checksum::sum(&message);
    wire::put_u16(&mut message, 2, checksum);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, TTL, wire::ICMP, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    let len = packet.len() as u16;
    wire::put_u16(&mut packet, 2, len);
    wire::fill_ipv4_checksum(&mut packet, wire::IPV4_HEADER);
    packet
}

fn answer6(offender: &Ip<'_>, to: Ipv6Addr, problem: Problem, from: Ipv6Addr) -> Vec<u8> {
    let (kind, mtu) = match problem {
        Problem::NoRoute => (UNREACHABLE_V6, 0),
        Problem::TooBig(mtu) => (PACKET_TOO_BIG_V6, mtu),
    };
    // As much as fits into what every link takes, RFC 4443 section 3.1.
    let most = SMALLEST_MTU_V6 - wire::IPV6_HEADER - 8;
    let quoted = offender.bytes().len().min(most);
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, wire::ICMPV6, 64];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend([kind, 0, 0, 0]);
    packet.extend(mtu.to_be_bytes());
    packet.extend(&offender.bytes()[..quoted]);
    let len = packet.len() - wire::IPV6_HEADER;
    wire::put_u16(&mut packet, 4, len as u16);
    let ip = Ip::new_checked(&packet).expect("made above");
    let sum = checksum::add(ip.pseudo_sum(wire::ICMPV6, len), checksum::sum(ip.payload()));
    wire::put_u16(&mut packet, wire::IPV6_HEADER + 2, !sum);
    packet
}

/// How many answers may be given: a few at once, and so many in each second.
#[derive(Debug)]
pub(crate) struct Limiter {
    tokens: u32,
    /// When the last token came, as a time since some beginning.
    at: Duration,
}

impl Limiter {
    pub(crate) fn new(now: Duration) -> Self {
        Self { tokens: BURST, at: now }
    }

    /// Whether another answer may be given now.
    pub(crate) fn allows(&mut self, now: Duration) -> bool {
        let earned = now.saturating_sub(self.at).as_micros() / EVERY.as_micros();
        if earned > 0 {
            self.tokens =
                BURST.min(self.tokens.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            // What is left over of a token counts on.
            self.at = match u32::try_from(earned) {
                Ok(earned) if self.tokens < BURST => self.at + EVERY * earned,
                _ => now,
            };
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

/// As the kernel's `icmp_msgs_burst`.
const BURST: u32 = 50;
/// As the kernel's `icmp_msgs_per_sec`, 1000.
const EVERY: Duration = Duration::from_millis(1);

/// What flannel gives its answers.
const TTL: u8 = 8;
/// The longest IPv4 header.
const MAX_HEADER: usize = 60;
/// RFC 8200.
const SMALLEST_MTU_V6: usize = 1280;

// RFC 792, RFC 1191, RFC 4443
const DESTINATION_UNREACHABLE: u8 = 3;
const NET_UNREACHABLE: u8 = 0;
const FRAGMENTATION_NEEDED: u8 = 4;
/// Echo, time stamp and information, with their replies.
const ICMP_QUERIES: [u8; 6] = [0, 8, 13, 14, 15, 16];
const UNREACHABLE_V6: u8 = 1;
const PACKET_TOO_BIG_V6: u8 = 2;
const ICMPV6_FIRST_QUERY: u8 = 128;

#[cfg(test)]
mod tests {
    use flannel_tunnel::testing::{arbitrary, packets};
    use proptest::prelude::*;

    use super::*;

    const DEVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 3, 1, 0));

    fn tell(packet: &[u8], problem: Problem) -> Option<Vec<u8>> {
        answer(&Ip::new_checked(packet).unwrap(), problem, DEVICE)
    }

    fn unreachable(packet: &[u8]) -> Option<Vec<u8>> {
        tell(packet, Problem::NoRoute)
    }

    #[test]
    fn net_unreachable_is_byte_for_byte_flannels() {
        let packet = packets::udp4([10, 3, 1, 2], [10, 3, 77, 3], 63, b"more than eight bytes");
        let answer = unreachable(&packet).unwrap();
        // Version, length, TTL 8, ICMP, from the device to the sender.
        assert_eq!(answer[..10], [0x45, 0, 0, 56, 0, 0, 0, 0, 8, 1]);
        assert_eq!(answer[12..20], [10, 3, 1, 0, 10, 3, 1, 2]);
        assert_eq!(answer[20..22], [3, 0]);
        assert_eq!(answer[24..28], [0; 4]);
        assert_eq!(answer[28..], packet[..28]);
        assert_eq!(checksum::sum(&answer[..20]), 0xffff);
        assert_eq!(checksum::sum(&answer[20..]), 0xffff);
    }

    #[test]
    fn who_must_not_be_told_is_not_told() {
        let good = packets::udp4([10, 3, 1, 2], [10, 3, 77, 3], 63, b"hello");
        assert!(unreachable(&good).is_some());
        let ping =
            packets::ipv4([10, 3, 1, 2], [10, 3, 77, 3], 63, wire::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert!(unreachable(&ping).is_none(), "ICMP of any type");
        let mut later = good.clone();
        later[7] = 1;
        assert!(unreachable(&later).is_none(), "not the first fragment");
        let mut first = good.clone();
        first[6] = 0x20;
        assert!(unreachable(&first).is_some(), "the first fragment");
        assert!(
            unreachable(&packets::with_options(&good, &[1; 40])).is_none(),
            "60 bytes of header"
        );
        assert!(unreachable(&packets::with_options(&good, &[1; 36])).is_some());
        for (from, to) in
            [([0; 4], [10, 3, 77, 3]), ([10, 3, 1, 2], [224, 0, 0, 1]), ([10, 3, 1, 2], [255; 4])]
        {
            assert!(unreachable(&packets::udp4(from, to, 63, b"hello")).is_none());
        }
    }

    #[test]
    fn a_ping_learns_of_a_small_path_and_an_error_does_not() {
        let icmp = |kind| {
            let payload = [kind, 0, 0, 0, 0, 0, 0, 0];
            let packet = packets::ipv4([10, 3, 1, 2], [10, 3, 2, 3], 63, wire::ICMP, &payload);
            tell(&packet, Problem::TooBig(1372))
        };
        let answer = icmp(8).unwrap();
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[26..28], 1372_u16.to_be_bytes());
        assert!(icmp(3).is_none());
    }

    #[test]
    fn ipv6_has_answers_of_its_own() {
        let device = "fd00:1::".parse().unwrap();
        let packet = packets::udp6("fd00:1::2", "fd00:77::3", 63, &[7; 1400]);
        let told =
            |packet: &[u8], problem| answer(&Ip::new_checked(packet).unwrap(), problem, device);
        let unreachable = told(&packet, Problem::NoRoute).unwrap();
        assert_eq!(unreachable.len(), 1280);
        assert_eq!(unreachable[40..42], [1, 0]);
        assert_eq!(unreachable[48..], packet[..1232]);
        assert!(packets::is_right(&unreachable));
        let too_big = told(&packet, Problem::TooBig(1352)).unwrap();
        assert_eq!(too_big[40..42], [2, 0]);
        assert_eq!(too_big[44..48], 1352_u32.to_be_bytes());
        let icmp = |kind| packets::ipv6("fd00:1::2", "fd00:77::3", 63, wire::ICMPV6, &[kind; 8]);
        assert!(told(&icmp(1), Problem::NoRoute).is_none());
        assert!(told(&icmp(128), Problem::NoRoute).is_some());
        assert!(told(&packets::udp6("fe80::1", "ff02::2", 1, b""), Problem::NoRoute).is_none());
        let later = packets::ipv6("fd00:1::2", "fd00:77::3", 63, 44, &[17, 0, 0, 8, 0, 0, 0, 1]);
        assert!(told(&later, Problem::NoRoute).is_none());
    }

    #[test]
    fn answers_are_limited_and_come_again() {
        let at = |millis| Duration::from_millis(millis);
        let mut limiter = Limiter::new(at(5));
        let mut allowed = |now| (0..200).filter(|_| limiter.allows(now)).count();
        assert_eq!(allowed(at(5)), 50);
        assert_eq!(allowed(at(8)), 3);
        assert_eq!(allowed(at(3)), 0, "a clock that goes back gives nothing");
        assert_eq!(allowed(at(100_000)), 50);
    }

    proptest! {
        #[test]
        fn no_packet_panics_and_answers_are_right(bytes in arbitrary::packet(), mtu: u32, v6: bool) {
            if let Ok(ip) = Ip::new_checked(&bytes) {
                let device = if v6 { "fd00:1::".parse().unwrap() } else { DEVICE };
                for problem in [Problem::NoRoute, Problem::TooBig(mtu)] {
                    if let Some(answer) = answer(&ip, problem, device) {
                        let told = Ip::new_checked(&answer).unwrap();
                        prop_assert_eq!(told.destination(), ip.source());
                        let pseudo = match told {
                            Ip::V4(_) => 0,
                            Ip::V6(_) => told.pseudo_sum(wire::ICMPV6, told.payload().len()),
                        };
                        prop_assert_eq!(checksum::add(pseudo, checksum::sum(told.payload())), 0xffff);
                    }
                }
            }
        }

        #[test]
        fn no_more_are_allowed_than_were_earned(steps in proptest::collection::vec(0u64..5000, 1..400)) {
            let mut limiter = Limiter::new(Duration::ZERO);
            let (mut now, mut allowed) = (0, 0);
            for step in steps {
                now += step;
                allowed += u64::from(limiter.allows(Duration::from_micros(now)));
                prop_assert!(allowed <= 50 + now / 1000);
            }
        }
    }
}
