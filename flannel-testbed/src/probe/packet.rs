use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// What a probe's datagram starts with. The rest of it is padding.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    /// Tells one prober's packets from another's.
    pub(super) id: u64,
    /// Counts the prober's packets.
    pub(super) sequence: u64,
    /// In an answer: where the question came from, as the answering side saw it.
    pub(super) seen: Option<SocketAddr>,
}

impl Packet {
    /// Writes the packet to the start of `datagram`, which holds at least [`PACKET_BYTES`].
    pub(super) fn write(&self, datagram: &mut [u8]) {
        let (ip, port) = match self.seen {
            Some(seen) => (to_ipv6(seen.ip()), seen.port()),
            None => (Ipv6Addr::UNSPECIFIED, 0),
        };
        datagram[0..4].copy_from_slice(MAGIC);
        datagram[4..6].copy_from_slice(&u16::from(self.seen.is_some()).to_be_bytes());
        datagram[6..8].copy_from_slice(&port.to_be_bytes());
        datagram[8..16].copy_from_slice(&self.id.to_be_bytes());
        datagram[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        datagram[24..PACKET_BYTES].copy_from_slice(&ip.octets());
    }

    /// Reads what [`write`](Self::write) wrote; `None` for anything else.
    pub(super) fn read(datagram: &[u8]) -> Option<Self> {
        let (header, rest) = datagram.split_first_chunk::<8>()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let ip = Ipv6Addr::from(*rest.first_chunk::<16>()?);
        let port = u16::from_be_bytes([header[6], header[7]]);
        let seen = match header {
            [m @ .., 0, 0, _, _] if m == MAGIC => None,
            [m @ .., 0, 1, _, _] if m == MAGIC => Some(SocketAddr::new(ip.to_canonical(), port)),
            _ => return None,
        };
        Some(Self { id: u64::from_be_bytes(*id), sequence: u64::from_be_bytes(*sequence), seen })
    }
}

/// Whether a frame has a probe or an answer in it as it is, behind whatever headers.
pub fn carries_probe(frame: &[u8]) -> bool {
    frame.windows(6).any(|bytes| bytes.starts_with(MAGIC) && matches!(bytes[4..], [0, 0 | 1]))
}

fn to_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The size of a [`Packet`] in a datagram.
pub(super) const PACKET_BYTES: usize = 40;
/// So that a stray datagram is not taken for a probe.
const MAGIC: &[u8; 4] = b"fltb";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Packet::read(&bytes);
        }

        #[test]
        fn what_was_written_is_read(id: u64, sequence: u64, seen: Option<(IpAddr, u16)>, padding in 0_usize..9) {
            let seen = seen.map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port));
            let packet = Packet { id, sequence, seen };
            let mut datagram = vec![0; PACKET_BYTES + padding];
            packet.write(&mut datagram);
            prop_assert_eq!(Packet::read(&datagram), Some(packet));
            prop_assert_eq!(Packet::read(&datagram[..PACKET_BYTES - 1]), None);
            datagram[0] ^= 1;
            prop_assert_eq!(Packet::read(&datagram), None);
        }
    }
}
