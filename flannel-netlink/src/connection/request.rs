use std::fmt;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use zeroize::Zeroizing;

use crate::{
    Message,
    wire::{self, MESSAGE_HEADER, align, messages},
};

/// One message to the kernel.
#[derive(Clone, Eq, PartialEq)]
pub struct Request {
    /// A whole netlink message, padded, with the sequence number left open. Overwritten when it is dropped, because keys may be in it.
    bytes: Zeroizing<Vec<u8>>,
}

impl Request {
    /// A request of this type (`RTM_*`) with these extra flags (`NLM_F_CREATE`, ...); `body` is
    /// what follows the netlink header.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MESSAGE_HEADER + align(body.len())));
        wire::start_message(&mut bytes, kind, flags | libc::NLM_F_REQUEST as u16);
        bytes.extend_from_slice(body);
        wire::finish_message(&mut bytes);
        Self { bytes }
    }

    /// The whole message as the kernel would see it, for reading it back.
    pub fn message(&self) -> Option<Message<'_>> {
        messages(&self.bytes).next()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn from_message(message: RouteNetlinkMessage, flags: u16) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self::new(message.message_type(), flags, &body)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let flags = wire::u16_at(&self.bytes, 6).unwrap_or(0) | flags;
        out[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
        out[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Request").field(&self.message()).finish()
    }
}

/// Writes as many of `requests` as one datagram takes, but `most` at most, numbered on from
/// `sequence`, and returns how many. The acknowledgement is asked on the last.
pub(super) fn pack(
    requests: &[Request],
    most: usize,
    sequence: &mut u32,
    out: &mut Vec<u8>,
) -> usize {
    out.clear();
    let mut count = 0;
    for request in requests.iter().take(most) {
        // One that is too large alone still goes, so that the kernel says what it thinks of it.
        if count > 0 && out.len() + request.bytes.len() > DATAGRAM_BYTES {
            break;
        }
        *sequence = sequence.wrapping_add(1);
        request.write(out, 0, *sequence);
        count += 1;
    }
    if let Some(last) = requests[..count].last() {
        let start = out.len() - last.bytes.len();
        out.truncate(start);
        last.write(out, libc::NLM_F_ACK as u16, *sequence);
    }
    count
}

/// 32 KiB: larger datagrams are not faster, and the kernel refuses those above its send buffer of
/// 208 KiB.
pub(super) const DATAGRAM_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const ACK: u16 = libc::NLM_F_ACK as u16;

    #[test]
    fn a_datagram_is_numbered_and_asks_for_one_acknowledgement() {
        let requests = vec![Request::new(24, 0, &[0; 20]); 5];
        let (mut sequence, mut datagram) = (u32::MAX - 1, Vec::new());
        assert_eq!(pack(&requests, 3, &mut sequence, &mut datagram), 3, "no more than asked");
        let seen: Vec<_> =
            messages(&datagram).map(|it| (it.sequence, it.flags & ACK != 0)).collect();
        assert_eq!(seen, [(u32::MAX, false), (0, false), (1, true)]);
    }

    #[test]
    fn a_datagram_stays_within_its_size() {
        let requests = vec![Request::new(24, 0, &[0; 1000]); 100];
        let (mut sequence, mut datagram) = (0, Vec::new());
        let count = pack(&requests, 1000, &mut sequence, &mut datagram);
        assert_eq!(count, DATAGRAM_BYTES / 1016);
        assert!(datagram.len() <= DATAGRAM_BYTES);
        let huge = [Request::new(24, 0, &vec![0; DATAGRAM_BYTES + 4]), Request::new(24, 0, &[])];
        assert_eq!(pack(&huge, 10, &mut sequence, &mut datagram), 1);
        assert_eq!(pack(&[], 10, &mut sequence, &mut datagram), 0);
    }
}
