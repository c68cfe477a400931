//! The framing of netfilter's netlink messages.

use flannel_netlink::{Attribute, attributes};

/// A datagram that is being written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends a message; `body` writes its attributes. `resource` is the last field of `struct nfgenmsg`.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, NFNETLINK_V0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).expect("a message is below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("attributes are small");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// An attribute that holds a number in network byte order, as all numbers of nftables are.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that holds a text with its zero byte.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes are small");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The family of a netfilter message.
    pub(crate) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }

    /// The attributes behind a fixed part of `length` bytes.
    pub(crate) fn attributes(
        &self,
        length: usize,
    ) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.body.get(length..).unwrap_or_default())
    }
}

/// The messages in one datagram, up to the first that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let body = bytes.get(MESSAGE_HEADER..length)?;
        let half = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let sequence = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
        let message = Message { kind: half(4)?, flags: half(6)?, sequence, body };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// The payload of an attribute as a number in network byte order.
pub(crate) fn number(attribute: Attribute<'_>) -> Option<u32> {
    attribute.u32().map(u32::from_be)
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// The size of `struct nfgenmsg`.
pub(crate) const FAMILY_HEADER: usize = 4;
/// The size of `struct nlmsghdr`.
pub(crate) const MESSAGE_HEADER: usize = 16;
/// The size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

// linux/netlink.h, linux/netfilter/nfnetlink.h
const NLA_F_NESTED: u16 = 0x8000;
const NFNETLINK_V0: u8 = 0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            for message in messages(&bytes) {
                let _ = message.family();
                let _ = message.attributes(FAMILY_HEADER).map(number).count();
            }
        }

        #[test]
        fn what_was_written_is_read(kind: u16, family: u8, value: u32, text in "[a-z]{0,20}") {
            let mut writer = Writer::default();
            for sequence in 7..9 {
                writer.message(kind, 5, sequence, (family, 10), |body| {
                    body.number(1, value);
                    body.nest(2, |inner| inner.text(3, &text));
                });
            }
            let read: Vec<_> = messages(writer.bytes()).collect();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!((read[1].kind, read[1].flags, read[1].sequence), (kind, 5, 8));
            prop_assert_eq!(read[1].family(), Some(family));
            let found: Vec<_> = read[1].attributes(FAMILY_HEADER).collect();
            prop_assert_eq!(number(found[0]), Some(value));
            let inner = found[1].nested().next().unwrap();
            prop_assert_eq!((found[1].kind, inner.kind, inner.text()), (2, 3, Some(&*text)));
        }
    }
}
