//! What to do with one packet.

use std::net::{IpAddr, SocketAddr};

use flannel_tunnel::{
    error::PacketError,
    wire::{self, Ip, Udp},
};

use crate::{config::SourceCheck, table::Table};

/// Each reason with its name for metrics.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $reason:ident => $name:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[non_exhaustive]
        pub enum DropReason {
            $($(#[$doc])* $reason,)*
        }

        impl DropReason {
            /// All of them, in the order of their names.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$reason),*];

            /// Its name for metrics, such as `unknown_peer`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// The kernel's description of a large packet does not fit the packet.
    BadOffload => "bad_offload",
    /// The IP header is shorter than a header or longer than the packet.
    HeaderLength => "header_length",
    /// It is one of our own datagrams, which would go round and round.
    Loop => "loop",
    /// No peer has its destination. Its sender is told.
    NoRoute => "no_route",
    /// There are bytes behind the packet's end.
    Oversized => "oversized",
    /// The kernel did not take the datagram for the peer.
    SendFailed => "send_failed",
    /// It names the routers to pass, or its options make no sense.
    SourceRoute => "source_route",
    /// Its source is not inside of the subnet of the peer that sent it.
    SpoofedSource => "spoofed_source",
    /// It is larger than the way to the peer takes. Its sender is told.
    TooBig => "too_big",
    /// There are fewer bytes than its header says.
    Truncated => "truncated",
    /// It may not pass another router.
    TtlExpired => "ttl_expired",
    /// The datagram is from nobody that we know.
    UnknownPeer => "unknown_peer",
    /// It is neither IPv4 nor IPv6.
    Version => "version",
    /// The kernel did not take the packet from the device.
    WriteFailed => "write_failed",
}

impl From<PacketError> for DropReason {
    fn from(error: PacketError) -> Self {
        match error {
            PacketError::BadOffload => Self::BadOffload,
            PacketError::HeaderLength => Self::HeaderLength,
            PacketError::Oversized => Self::Oversized,
            PacketError::Version => Self::Version,
            _ => Self::Truncated,
        }
    }
}

/// Where a packet from a pod goes, which has been looked at as a whole and has TTL left. [`DropReason::NoRoute`] is to be told
/// to its sender.
pub(crate) fn outbound<'a>(
    packet: &'a [u8],
    table: &Table,
) -> Result<(Ip<'a>, SocketAddr), DropReason> {
    let ip = acceptable(packet)?;
    let Some(endpoint) = table.endpoint(ip.destination()) else {
        return Err(DropReason::NoRoute);
    };
    if ip.protocol() == wire::UDP
        && !ip.is_fragment()
        && let Some(udp) = Udp::new_checked(ip.payload())
        && table.is_local(SocketAddr::new(ip.source(), udp.source_port()))
    {
        return Err(DropReason::Loop);
    }
    if ip.ttl() <= 1 {
        return Err(DropReason::TtlExpired);
    }
    Ok((ip, endpoint))
}

/// Whether packets from peers go to pods.
#[derive(Debug)]
pub(crate) struct Inbound<'t> {
    table: &'t Table,
    /// The peer and the source of a packet that the table allowed: the next one often has both.
    last: Option<(IpAddr, IpAddr)>,
}

impl<'t> Inbound<'t> {
    pub(crate) fn new(table: &'t Table) -> Self {
        Self { table, last: None }
    }

    /// Whether a packet that came in a datagram from `from` goes to a pod, looked at as a whole.
    pub(crate) fn judge<'a>(
        &mut self,
        packet: &'a [u8],
        from: IpAddr,
    ) -> Result<Ip<'a>, DropReason> {
        let Self { table, last } = self;
        let check = table.source_check();
        // Unknown sources are not told apart by what they send.
        if check != SourceCheck::None
            && last.is_none_or(|(peer, _)| peer != from)
            && !table.is_known(from)
        {
            return Err(DropReason::UnknownPeer);
        }
        let ip = acceptable(packet)?;
        let sender = (from, ip.source());
        if check != SourceCheck::None && *last != Some(sender) {
            if check == SourceCheck::Subnet
                && table.endpoint(sender.1).map(|peer| peer.ip()) != Some(from)
            {
                return Err(DropReason::SpoofedSource);
            }
            *last = Some(sender);
        }
        if ip.ttl() <= 1 {
            return Err(DropReason::TtlExpired);
        }
        Ok(ip)
    }
}

fn acceptable(packet: &[u8]) -> Result<Ip<'_>, DropReason> {
    let ip = Ip::new_checked(packet)?;
    match ip {
        Ip::V4(v4) if v4.has_source_route() => Err(DropReason::SourceRoute),
        ip => Ok(ip),
    }
}

#[cfg(test)]
mod tests {
    use flannel_tunnel::testing::{arbitrary, packets};
    use proptest::prelude::*;

    use super::*;
    use crate::plan::ForwardingPlan;

    fn plan() -> ForwardingPlan {
        let endpoints = [
            ("10.3.2.0/24", "192.0.2.2:8285"),
            ("10.3.9.0/24", "192.0.2.9:8285"),
            ("192.0.2.0/28", "192.0.2.9:8285"),
            ("fd00:2::/64", "[2001:db8::2]:8285"),
        ];
        ForwardingPlan { port: 5000, ..ForwardingPlan::to(&endpoints) }
    }

    fn out(packet: &[u8]) -> Result<SocketAddr, DropReason> {
        outbound(packet, &Table::new(&plan())).map(|(_, to)| to)
    }

    fn within(packet: &[u8], from: &str) -> Option<DropReason> {
        Inbound::new(&Table::new(&plan())).judge(packet, from.parse().unwrap()).err()
    }

    #[test]
    fn reasons_are_in_the_order_of_their_names() {
        assert!(DropReason::ALL.map(DropReason::name).is_sorted());
    }

    #[test]
    fn a_packet_goes_to_the_peer_that_has_its_destination() {
        let packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b"hello");
        assert_eq!(out(&packet), Ok("192.0.2.2:8285".parse().unwrap()));
        let packet = packets::udp6("fd00:1::2", "fd00:2::3", 64, b"hello");
        assert_eq!(out(&packet), Ok("[2001:db8::2]:8285".parse().unwrap()));
    }

    #[test]
    fn a_packet_to_nobody_a_loop_and_a_last_hop_are_dropped() {
        let to = |ttl, to| out(&packets::udp4([10, 3, 1, 2], to, ttl, b"hello"));
        assert_eq!(to(64, [10, 3, 77, 3]), Err(DropReason::NoRoute));
        assert_eq!(to(1, [10, 3, 2, 3]), Err(DropReason::TtlExpired));
        assert_eq!(to(0, [10, 3, 2, 3]), Err(DropReason::TtlExpired));
        assert!(to(2, [10, 3, 2, 3]).is_ok());
        // From our own address and port, to a peer whose own address is inside of a subnet.
        let own = packets::udp4([192, 0, 2, 3], [192, 0, 2, 9], 64, b"hello");
        assert_eq!(out(&own), Err(DropReason::Loop));
    }

    #[test]
    fn a_source_route_is_dropped_and_other_options_pass() {
        let packet = packets::udp4([10, 3, 1, 2], [10, 3, 2, 3], 64, b"hello");
        let routed = packets::with_options(&packet, &[131, 7, 4, 1, 2, 3, 4, 0]);
        assert_eq!(out(&routed), Err(DropReason::SourceRoute));
        assert!(out(&packets::with_options(&packet, &[7, 7, 4, 0, 0, 0, 0, 0])).is_ok());
    }

    #[test]
    fn a_peer_sends_from_its_own_address_and_subnet() {
        let packet = packets::udp4([10, 3, 2, 3], [10, 3, 1, 2], 64, b"hello");
        assert_eq!(within(&packet, "192.0.2.2"), None);
        assert_eq!(within(&packet, "192.0.2.77"), Some(DropReason::UnknownPeer));
        assert_eq!(within(&packet, "192.0.2.9"), Some(DropReason::SpoofedSource));
        let outside = packets::udp4([10, 4, 2, 3], [10, 3, 1, 2], 64, b"hello");
        assert_eq!(within(&outside, "192.0.2.2"), Some(DropReason::SpoofedSource));
        let last = packets::udp4([10, 3, 2, 3], [10, 3, 1, 2], 1, b"hello");
        assert_eq!(within(&last, "192.0.2.2"), Some(DropReason::TtlExpired));
    }

    #[test]
    fn packets_of_a_kernel_pass_and_are_right_one_hop_later() {
        let blocks = ["10.244.2.0/24", "fd00:10:244:2::/64"];
        let table = Table::new(&ForwardingPlan::to(&blocks.map(|block| (block, "192.0.2.2:8285"))));
        for mut packet in packets::captured() {
            let ip = Inbound::new(&table).judge(&packet, "192.0.2.2".parse().unwrap()).unwrap();
            let ttl = ip.ttl();
            wire::decrement_ttl(&mut packet);
            let ip = Ip::new_checked(&packet).unwrap();
            assert_eq!(ip.ttl(), ttl - 1);
            if ip.protocol() == wire::TCP || ip.protocol() == wire::UDP {
                assert!(packets::is_right(&packet));
            }
        }
    }

    #[test]
    fn a_peer_may_send_what_it_routes_unless_that_is_checked() {
        let packet = packets::udp4([198, 51, 100, 3], [10, 3, 1, 2], 64, b"hello");
        assert_eq!(within(&packet, "192.0.2.2"), Some(DropReason::SpoofedSource));
        let table = Table::new(&ForwardingPlan { source_check: SourceCheck::Peer, ..plan() });
        let judge = |from: &str| Inbound::new(&table).judge(&packet, from.parse().unwrap()).err();
        assert_eq!(judge("192.0.2.2"), None);
        assert_eq!(judge("192.0.2.77"), Some(DropReason::UnknownPeer));
    }

    #[test]
    fn without_the_check_any_source_will_do() {
        let table = Table::new(&ForwardingPlan { source_check: SourceCheck::None, ..plan() });
        let packet = packets::udp4([10, 4, 2, 3], [10, 3, 1, 2], 64, b"hello");
        let mut inbound = Inbound::new(&table);
        assert!(inbound.judge(&packet, "192.0.2.77".parse().unwrap()).is_ok());
        assert!(inbound.judge(b"garbage", "192.0.2.77".parse().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in arbitrary::packet()) {
            let table = Table::new(&plan());
            if let Ok((ip, _)) = outbound(&bytes, &table) {
                prop_assert!(ip.ttl() > 1);
            }
            if let Ok(ip) = Inbound::new(&table).judge(&bytes, "192.0.2.2".parse().unwrap()) {
                prop_assert_eq!(table.endpoint(ip.source()), Some("192.0.2.2:8285".parse().unwrap()));
            }
        }

        #[test]
        fn what_came_before_decides_nothing(
            packets in proptest::collection::vec((0u8..4, 0u8..3, 0u8..3, 0u8..3), 1..40),
        ) {
            let table = Table::new(&plan());
            let mut inbound = Inbound::new(&table);
            for (from, source, ttl, version) in packets {
                let from = IpAddr::from([[192, 0, 2, 2], [192, 0, 2, 9], [192, 0, 2, 77], [10, 3, 2, 3]][usize::from(from)]);
                let source = [[10, 3, 2, 3], [10, 3, 9, 3], [10, 4, 2, 3]][usize::from(source)];
                let mut packet = packets::udp4(source, [10, 3, 1, 2], ttl, b"hello");
                packet[0] ^= version << 4;
                let alone = Inbound::new(&table).judge(&packet, from).map(|ip| ip.source());
                prop_assert_eq!(inbound.judge(&packet, from).map(|ip| ip.source()), alone);
            }
        }
    }
}
