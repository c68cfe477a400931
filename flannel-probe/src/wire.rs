//! The datagrams: a header of 24 bytes, and zeros behind it in probes that are to be large.

/// A request, or the answer to one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Datagram {
    /// Which of the two.
    pub kind: Kind,
    /// How large the probe is as an IP packet, bytes.
    pub size: u16,
    /// A number that nobody guesses, by which an answer is known to be one.
    pub nonce: u64,
}

/// What a datagram is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Whoever gets it sends it back as a reply, without what is behind the header.
    Request,
    /// What comes back.
    Reply,
}

impl Datagram {
    /// A datagram of this kind.
    pub const fn new(kind: Kind, size: u16, nonce: u64) -> Self {
        Self { kind, size, nonce }
    }

    /// Reads a datagram of `length` bytes that begins with `bytes`; `None` for anything else. An answer has nothing behind the
    /// header, and a probe has what its size says, for `headers` bytes of IP and UDP in front of it.
    pub fn parse(bytes: &[u8], length: usize, headers: usize) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let (magic, rest) = header.split_at(MAGIC.len());
        let [version, kind, large, small, 0, 0, 0, 0, nonce @ ..] = rest else { return None };
        if (magic, *version) != (&MAGIC[..], VERSION) {
            return None;
        }
        let size = u16::from_be_bytes([*large, *small]);
        let nonce = u64::from_be_bytes(nonce.try_into().ok()?);
        let (kind, expected) = match *kind {
            REQUEST => (Kind::Request, usize::from(size).checked_sub(headers)?),
            REPLY => (Kind::Reply, HEADER),
            _ => return None,
        };
        (length == expected).then_some(Self { kind, size, nonce })
    }

    /// The header.
    pub fn header(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = VERSION;
        bytes[9] = match self.kind {
            Kind::Reply => REPLY,
            Kind::Request => REQUEST,
        };
        bytes[10..12].copy_from_slice(&self.size.to_be_bytes());
        bytes[16..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }
}

/// The size of the header, bytes: the smallest probe, and every answer, so that nobody gets more than was sent.
pub const HEADER: usize = 24;

const MAGIC: &[u8; 8] = b"fl-probe";
const VERSION: u8 = 1;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_these() {
        let datagram = Datagram::new(Kind::Request, 0x05dc, 0x0102_0304_0506_0708);
        let bytes = datagram.header();
        assert_eq!(bytes, *b"fl-probe\x01\x01\x05\xdc\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(Datagram::parse(&bytes, 1500 - 28, 28), Some(datagram));
        for length in [0, HEADER, 1500 - 29, 1500 - 27, 1500] {
            assert_eq!(Datagram::parse(&bytes, length, 28), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(answer: bool, size in 52_u16.., nonce: u64) {
            let kind = if answer { Kind::Reply } else { Kind::Request };
            let datagram = Datagram::new(kind, size, nonce);
            let length = if answer { HEADER } else { usize::from(size) - 28 };
            prop_assert_eq!(Datagram::parse(&datagram.header(), length, 28), Some(datagram));
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_hardly_any_are_taken(
            mut bytes in prop::collection::vec(any::<u8>(), 0..64),
            length in 0_usize..70_000,
            begins_well: bool,
            at in 0_usize..16,
            other in 1_u8..,
        ) {
            prop_assert_eq!(Datagram::parse(&bytes, length, 28), None);
            if begins_well && bytes.len() >= HEADER {
                let header = Datagram::new(Kind::Reply, 60, 7).header();
                bytes[..HEADER].copy_from_slice(&header);
                let read = Datagram::parse(&bytes, length, 28);
                prop_assert_eq!(read.is_some(), length == HEADER);
                // Every byte in front of the nonce counts, but for those of the size.
                bytes[at] ^= other;
                let read = Datagram::parse(&bytes, HEADER, 28);
                prop_assert_eq!(read.is_some_and(|it| it.kind == Kind::Reply), matches!(at, 10 | 11));
            }
        }
    }
}
