//! The netlink framing: messages in a datagram, attributes in a message. Reading never panics; what
//! does not fit its declared length ends the iteration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One netlink message of a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Message<'a> {
    /// The message type, such as `RTM_NEWROUTE`.
    pub kind: u16,
    /// The `NLM_F_*` flags.
    pub flags: u16,
    /// The sequence number of the request that caused it, or of the requester in a notification.
    pub sequence: u32,
    /// The netlink port of the requester. In a notification: who made the change, 0 for the kernel.
    pub port: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The body's fixed part of `length` bytes and the attributes behind it.
    pub fn split(
        &self,
        length: usize,
    ) -> Option<(&'a [u8], impl Iterator<Item = Attribute<'a>> + use<'a>)> {
        let (header, rest) = self.body.split_at_checked(length)?;
        Some((header, attributes(rest)))
    }
}

/// One attribute of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Attribute<'a> {
    /// The type, without the nested and byte order bits.
    pub kind: u16,
    /// The payload.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The payload as a number in host byte order.
    pub fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    /// The payload as a number in host byte order.
    pub fn u16(&self) -> Option<u16> {
        Some(u16::from_ne_bytes(*self.value.first_chunk()?))
    }

    /// The payload as a number in network byte order.
    pub fn u16_be(&self) -> Option<u16> {
        self.u16().map(u16::from_be)
    }

    /// The payload as a number in host byte order.
    pub fn u32(&self) -> Option<u32> {
        u32_at(self.value, 0)
    }

    /// The payload as a number in network byte order.
    pub fn u32_be(&self) -> Option<u32> {
        self.u32().map(u32::from_be)
    }

    /// The payload as an IPv4 or IPv6 address, told apart by its length.
    pub fn ip(&self) -> Option<IpAddr> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.value) {
            return Some(Ipv4Addr::from(octets).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(self.value).ok()?).into())
    }

    /// The payload as text up to the first zero byte.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        str::from_utf8(&self.value[..end]).ok()
    }

    /// The payload as attributes.
    pub fn nested(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.value)
    }
}

/// The attributes in `bytes`, up to the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(ATTRIBUTE_HEADER..length)?;
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(Attribute { kind: kind & ATTRIBUTE_KIND_MASK, value })
    })
}

/// The messages in one datagram, up to the first that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let body = bytes.get(MESSAGE_HEADER..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            body,
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Appends a message header for a body that follows. [`finish_message`] sets the length.
pub(crate) fn start_message(out: &mut Vec<u8>, kind: u16, flags: u16) {
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Sets the length of the message that fills `out`, and pads it.
pub(crate) fn finish_message(out: &mut Vec<u8>) {
    let length = u32::try_from(out.len()).expect("a message is far below 4 GiB");
    out[0..4].copy_from_slice(&length.to_ne_bytes());
    out.resize(align(out.len()), 0);
}

/// The body of a request that begins with `header`, with room for the attributes of any object.
pub(crate) fn body(header: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(USUAL_BODY);
    body.extend_from_slice(header);
    body
}

/// Appends one attribute.
///
/// # Panics
///
/// If `value` does not fit into an attribute, which takes less than 64 KiB.
pub fn push_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).expect("our attributes are small");
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(align(out.len()), 0);
}

/// Appends one attribute that holds a text with its zero byte.
///
/// # Panics
///
/// As [`push_attribute`].
pub fn push_text(out: &mut Vec<u8>, kind: u16, text: &str) {
    push_attribute(out, kind, &[text.as_bytes(), &[0]].concat());
}

/// As much of a text as fits in so many bytes, without a part of a character.
pub fn shortened(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Appends one attribute that holds a number in network byte order, as netfilter's do.
pub fn push_u32_be(out: &mut Vec<u8>, kind: u16, value: u32) {
    push_attribute(out, kind, &value.to_be_bytes());
}

/// Appends one attribute that holds the attributes which `inner` appends.
///
/// # Panics
///
/// As [`push_attribute`].
pub fn push_nested(out: &mut Vec<u8>, kind: u16, inner: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    push_attribute(out, kind | NLA_F_NESTED, &[]);
    inner(out);
    let length = u16::try_from(out.len() - start).expect("our attributes are small");
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

/// The fixed part of a netfilter message, `struct nfgenmsg`.
pub fn netfilter_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, NFNETLINK_V0, high, low]
}

/// Appends one attribute that holds an address.
pub(crate) fn push_ip(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => push_attribute(out, kind, &v4.octets()),
        IpAddr::V6(v6) => push_attribute(out, kind, &v6.octets()),
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Messages and attributes start at multiples of four bytes.
pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// More than an IPv6 route through a gateway takes.
const USUAL_BODY: usize = 128;
/// The size of `struct nlmsghdr`.
pub(crate) const MESSAGE_HEADER: usize = 16;
/// The size of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Set in the type of an attribute that holds attributes.
pub(crate) const NLA_F_NESTED: u16 = 0x8000;
// linux/netfilter/nfnetlink.h
const NFNETLINK_V0: u8 = 0;
/// All but `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_KIND_MASK: u16 = 0x3fff;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_is_shortened_between_characters() {
        assert_eq!(
            [0, 1, 2, 3, 9].map(|bytes| shortened("aéé", bytes)),
            ["", "a", "a", "aé", "aéé"]
        );
    }

    #[test]
    fn an_attribute_that_claims_too_much_ends_the_list() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 7, b"abc");
        bytes.extend_from_slice(&[200, 0, 8, 0, 1]);
        let kinds: Vec<_> = attributes(&bytes).map(|a| (a.kind, a.value.to_vec())).collect();
        assert_eq!(kinds, [(7, b"abc".to_vec())]);
    }

    #[test]
    fn a_zero_length_does_not_loop() {
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            for message in messages(&bytes) {
                for attribute in attributes(message.body) {
                    let _ = (attribute.u8(), attribute.u16_be(), attribute.u32());
                    let _ = (attribute.ip(), attribute.text());
                    let _ = attribute.nested().count();
                }
            }
            let _ = attributes(&bytes).count();
        }

        #[test]
        fn nested_attributes_are_read_as_written(value: u32, text in "[a-z]{0,20}") {
            let mut bytes = Vec::new();
            push_u32_be(&mut bytes, 1, value);
            push_nested(&mut bytes, 2, |out| push_text(out, 3, &text));
            let read: Vec<_> = attributes(&bytes).collect();
            prop_assert_eq!(read[0].u32_be(), Some(value));
            let inner = read[1].nested().next().unwrap();
            prop_assert_eq!((read[1].kind, inner.kind, inner.text()), (2, 3, Some(&*text)));
        }

        #[test]
        fn what_was_written_is_read(
            values in prop::collection::vec(
                (0_u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)),
                0..8,
            )
        ) {
            let mut bytes = Vec::new();
            start_message(&mut bytes, 24, 5);
            for (kind, value) in &values {
                push_attribute(&mut bytes, *kind, value);
            }
            finish_message(&mut bytes);
            let read: Vec<_> = messages(&bytes).collect();
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!((read[0].kind, read[0].flags), (24, 5));
            let back: Vec<_> =
                attributes(read[0].body).map(|a| (a.kind, a.value.to_vec())).collect();
            prop_assert_eq!(back, values);
        }
    }
}
