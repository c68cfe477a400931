//! Packets of one flow that came together, joined into a large one, as the kernel does for a network card.
//!
//! What is joined can be cut into the very same packets again, up to the identification of packets that must not be cut anyway
//! (RFC 6864). Packets of one flow keep their order.

use crate::{
    checksum,
    segment::{GSO_TCPV4, GSO_TCPV6, GSO_UDP, Offload},
    wire::{self, Ip, Tcp, Udp},
};

/// Where the bytes of a packet are: in which buffer, from where, and how many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PacketRef {
    /// The number of the buffer.
    pub buffer: usize,
    /// Where the packet begins in it, bytes.
    pub at: usize,
    /// Its length, bytes.
    pub len: usize,
}

impl PacketRef {
    /// The packet itself.
    ///
    /// # Panics
    ///
    /// If it is not inside of `buffers`.
    pub fn of<B: AsRef<[u8]>>(self, buffers: &[B]) -> &[u8] {
        &buffers[self.buffer].as_ref()[self.at..self.at + self.len]
    }

    /// Without its first `len` bytes.
    fn skip(self, len: usize) -> Self {
        Self { at: self.at + len, len: self.len - len, ..self }
    }
}

/// What comes out.
#[derive(Debug)]
pub enum Output<'a> {
    /// A packet as it came.
    Plain(PacketRef),
    /// Several as one.
    Joined {
        /// What the device is told.
        offload: Offload,
        /// The headers of the whole.
        header: &'a [u8],
        /// Where its data are, in their order.
        data: &'a [PacketRef],
    },
}

/// What is being joined. Buffers must stay as they are until it is [flushed](Self::flush).
#[derive(Debug)]
pub struct Gro {
    /// The first so many are in use, the oldest first.
    groups: Vec<Group>,
    used: usize,
    udp_gso: bool,
}

#[derive(Debug)]
struct Group {
    key: Key,
    protocol: u8,
    first: PacketRef,
    /// The headers of the first packet.
    header: [u8; MAX_HEADER],
    ip_len: usize,
    header_len: usize,
    /// What each packet but the last carries, bytes.
    size: usize,
    total: usize,
    next_sequence: u32,
    next_id: u16,
    /// Whether the checksums of the first packet were looked at.
    is_verified: bool,
    data: Vec<PacketRef>,
}

/// Version, protocol, addresses and ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Key([u8; 40]);

/// What a packet allows.
enum Class<'a> {
    /// Nothing may overtake it.
    Barrier,
    /// Nothing of its flow may overtake it.
    Flow(Key),
    /// It can be joined with others of its flow.
    Joinable(Candidate<'a>),
}

struct Candidate<'a> {
    key: Key,
    ip: Ip<'a>,
    header_len: usize,
    /// Nothing may be joined behind it.
    is_last: bool,
}

impl Gro {
    /// Joins TCP, and UDP if the device takes large UDP packets.
    pub fn new(udp_gso: bool) -> Self {
        let group = || Group {
            key: Key([0; 40]),
            protocol: 0,
            first: PacketRef { buffer: 0, at: 0, len: 0 },
            header: [0; MAX_HEADER],
            ip_len: 0,
            header_len: 0,
            size: 0,
            total: 0,
            next_sequence: 0,
            next_id: 0,
            is_verified: false,
            data: Vec::with_capacity(MAX_PARTS),
        };
        Self { groups: (0..GROUPS).map(|_| group()).collect(), used: 0, udp_gso }
    }

    /// Takes in the packet at `piece`, which is whole; `out` gets whatever is finished by that.
    pub fn push<B: AsRef<[u8]>>(
        &mut self,
        piece: PacketRef,
        buffers: &[B],
        mut out: impl FnMut(Output<'_>),
    ) {
        let class = match Ip::new_checked(piece.of(buffers)) {
            Ok(ip) => classify(ip, self.udp_gso),
            Err(_) => Class::Barrier,
        };
        match class {
            Class::Barrier => {
                self.flush(&mut out);
                out(Output::Plain(piece));
            }
            Class::Flow(key) => {
                if let Some(at) = self.find(&key) {
                    self.emit(at, &mut out);
                }
                out(Output::Plain(piece));
            }
            Class::Joinable(candidate) => self.join(piece, &candidate, buffers, out),
        }
    }

    /// Lets out all that is left.
    pub fn flush(&mut self, mut out: impl FnMut(Output<'_>)) {
        while self.used > 0 {
            self.emit(0, &mut out);
        }
    }

    fn join<B: AsRef<[u8]>>(
        &mut self,
        piece: PacketRef,
        candidate: &Candidate<'_>,
        buffers: &[B],
        mut out: impl FnMut(Output<'_>),
    ) {
        if let Some(at) = self.find(&candidate.key) {
            let group = &mut self.groups[at];
            if group.takes(candidate, buffers) {
                group.add(piece, candidate);
                let is_full = candidate.is_last
                    || piece.len - candidate.header_len < group.size
                    || group.data.len() == MAX_PARTS;
                if is_full {
                    self.emit(at, &mut out);
                }
                return;
            }
            self.emit(at, &mut out);
        }
        if candidate.is_last {
            out(Output::Plain(piece));
            return;
        }
        if self.used == GROUPS {
            self.emit(0, &mut out);
        }
        self.groups[self.used].begin(piece, candidate);
        self.used += 1;
    }

    fn find(&self, key: &Key) -> Option<usize> {
        self.groups[..self.used].iter().position(|group| group.key == *key)
    }

    fn emit(&mut self, at: usize, mut out: impl FnMut(Output<'_>)) {
        let group = &mut self.groups[at];
        if group.data.len() == 1 {
            out(Output::Plain(group.first));
        } else {
            let offload = group.finish();
            let header = &group.header[..group.header_len];
            out(Output::Joined { offload, header, data: &group.data });
        }
        // The others keep their order.
        self.groups[at..self.used].rotate_left(1);
        self.used -= 1;
    }
}

impl Group {
    fn begin(&mut self, piece: PacketRef, candidate: &Candidate<'_>) {
        let Candidate { key, ip, header_len, .. } = candidate;
        self.key = *key;
        self.protocol = ip.protocol();
        self.first = piece;
        self.header[..*header_len].copy_from_slice(&ip.bytes()[..*header_len]);
        self.ip_len = ip.header_len();
        self.header_len = *header_len;
        self.size = piece.len - header_len;
        self.total = 0;
        self.is_verified = false;
        self.next_sequence = match Tcp::new_checked(ip.payload()) {
            Some(tcp) if self.protocol == wire::TCP => tcp.sequence(),
            _ => 0,
        };
        self.data.clear();
        self.add(piece, candidate);
    }

    fn add(&mut self, piece: PacketRef, candidate: &Candidate<'_>) {
        let data = piece.skip(self.header_len);
        self.data.push(data);
        self.total += data.len;
        self.next_sequence = self.next_sequence.wrapping_add(data.len as u32);
        if let Ip::V4(v4) = candidate.ip {
            self.next_id = v4.identification().wrapping_add(1);
        }
        if self.protocol == wire::TCP {
            // Whether it is to be handed on at once, from the last.
            self.header[self.ip_len + 13] |= candidate.ip.payload()[13] & wire::PSH;
        }
    }

    /// Whether a packet goes on where this group ends, and all checksums are right: a wrong one must stay one.
    fn takes<B: AsRef<[u8]>>(&mut self, candidate: &Candidate<'_>, buffers: &[B]) -> bool {
        let Candidate { ip, header_len, .. } = candidate;
        let len = ip.bytes().len() - header_len;
        let header = &self.header[..self.header_len];
        let next = &ip.bytes()[..*header_len];
        let same = |range: std::ops::Range<usize>| header[range.clone()] == next[range];
        if *header_len != self.header_len
            || len > self.size
            || self.header_len + self.total + len > usize::from(u16::MAX)
        {
            return false;
        }
        let fits = match ip {
            Ip::V4(v4) => {
                let is_next = v4.dont_fragment() || v4.identification() == self.next_id;
                same(0..2) && same(6..9) && is_next
            }
            Ip::V6(_) => same(0..4) && same(7..8),
        };
        let at = self.ip_len;
        let goes_on = self.protocol != wire::TCP
            || wire::u32_at(next, at + 4) == self.next_sequence
                && same(at + 8..at + 13)
                && same(at + 14..at + 16)
                && same(at + 18..self.header_len);
        if !fits || !goes_on || !ip.has_right_checksums() {
            return false;
        }
        self.is_verified = self.is_verified
            || Ip::new_checked(self.first.of(buffers))
                .is_ok_and(|first| first.has_right_checksums());
        self.is_verified
    }

    /// Makes the headers those of the whole.
    fn finish(&mut self) -> Offload {
        let len = self.header_len + self.total;
        let behind = len - self.ip_len;
        let header = &mut self.header[..self.header_len];
        let is_v6 = header[0] >> 4 == 6;
        let kind = match (self.protocol, is_v6) {
            (wire::TCP, false) => GSO_TCPV4,
            (wire::TCP, true) => GSO_TCPV6,
            _ => GSO_UDP,
        };
        let addresses = if is_v6 {
            wire::put_u16(header, 4, behind as u16);
            checksum::sum(&header[8..40])
        } else {
            wire::put_u16(header, 2, len as u16);
            wire::fill_ipv4_checksum(header, self.ip_len);
            checksum::sum(&header[12..20])
        };
        let offset = if self.protocol == wire::TCP {
            16
        } else {
            wire::put_u16(header, self.ip_len + 4, behind as u16);
            6
        };
        // The sum of the pseudo header: the rest is the kernel's to add, where it is needed at all.
        let pseudo =
            checksum::add(checksum::add(u16::from(self.protocol), behind as u16), addresses);
        wire::put_u16(header, self.ip_len + offset, pseudo);
        Offload {
            needs_checksum: true,
            kind,
            header_len: self.header_len as u16,
            size: self.size as u16,
            checksum_start: self.ip_len as u16,
            checksum_offset: offset as u16,
        }
    }
}

fn classify(ip: Ip<'_>, udp_gso: bool) -> Class<'_> {
    let ports = match ip.payload() {
        [a, b, c, d, ..] if !ip.is_fragment() => [*a, *b, *c, *d],
        _ => return Class::Barrier,
    };
    let protocol = ip.protocol();
    let mut key = [0; 40];
    key[..2].copy_from_slice(&[ip.bytes()[0] >> 4, protocol]);
    key[2..6].copy_from_slice(&ports);
    match ip {
        Ip::V4(_) => key[6..14].copy_from_slice(&ip.bytes()[12..20]),
        Ip::V6(_) => key[6..38].copy_from_slice(&ip.bytes()[8..40]),
    }
    let key = Key(key);
    let has_options = matches!(ip, Ip::V4(v4) if v4.header_len() > wire::IPV4_HEADER);
    match protocol {
        wire::TCP => {
            let Some(tcp) = Tcp::new_checked(ip.payload()) else {
                return Class::Flow(key);
            };
            let flags = tcp.flags();
            let header_len = ip.header_len() + tcp.header_len();
            let carries_data = ip.bytes().len() > header_len;
            if has_options || flags & !wire::PSH != wire::ACK || !carries_data {
                return Class::Flow(key);
            }
            Class::Joinable(Candidate { key, ip, header_len, is_last: flags & wire::PSH != 0 })
        }
        wire::UDP => {
            let header_len = ip.header_len() + wire::UDP_HEADER;
            let is_plain = Udp::new_checked(ip.payload())
                .is_some_and(|udp| udp.checksum() != 0 && udp.total_len() == ip.payload().len());
            if has_options || !udp_gso || !is_plain || ip.bytes().len() == header_len {
                return Class::Flow(key);
            }
            Class::Joinable(Candidate { key, ip, header_len, is_last: false })
        }
        _ => Class::Barrier,
    }
}

/// Flows that are joined at the same time.
const GROUPS: usize = 8;
/// What the kernel cuts a UDP packet into at most: `UDP_MAX_SEGMENTS` before Linux 6.9.
pub const MAX_PARTS: usize = 64;
/// IPv6 and the longest TCP header.
const MAX_HEADER: usize = wire::IPV6_HEADER + 60;

#[cfg(test)]
mod tests;
