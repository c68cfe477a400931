//! What a rule is made of: the expressions that nft compiles it to.

use flannel_netlink::{Attribute, push_attribute, push_nested, push_text, push_u32_be};
use ipnetwork::IpNetwork;

use super::{
    uapi::{
        NFT_LOOKUP_F_INV, NFT_NAT_DNAT, NFT_NAT_SNAT, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN,
        NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA,
        NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CT_DREG, NFTA_CT_KEY, NFTA_DATA_VALUE, NFTA_EXPR_DATA,
        NFTA_EXPR_NAME, NFTA_FIB_DREG, NFTA_FIB_FLAGS, NFTA_FIB_RESULT, NFTA_IMMEDIATE_DATA,
        NFTA_IMMEDIATE_DREG, NFTA_LIST_ELEM, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS, NFTA_LOOKUP_SET,
        NFTA_LOOKUP_SREG, NFTA_MASQ_FLAGS, NFTA_MASQ_REG_PROTO_MIN, NFTA_MATCH_INFO,
        NFTA_MATCH_NAME, NFTA_MATCH_REV, NFTA_META_DREG, NFTA_META_KEY, NFTA_NAT_FAMILY,
        NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_TYPE, NFTA_PAYLOAD_BASE,
        NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_RANGE_FROM_DATA,
        NFTA_RANGE_OP, NFTA_RANGE_SREG, NFTA_RANGE_TO_DATA, NFTA_TARGET_NAME,
    },
    verdict::Verdict,
};

/// One expression, with its values as they are in packets and registers. Registers have the kernel's numbers, `NFT_REG_*`.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Expression {
    /// Keeps the bits of a register that `mask` has, and then turns those that `xor` has.
    #[expect(missing_docs, reason = "said above")]
    Bitwise { source: u32, destination: u32, mask: Vec<u8>, xor: Vec<u8> },
    /// What iptables-nft keeps as comment.
    Comment(String),
    /// Ends the rule unless the register compares so with `value`.
    #[expect(missing_docs, reason = "said above")]
    Compare { register: u32, comparison: Comparison, value: Vec<u8> },
    /// Loads a fact about the packet's connection, `NFT_CT_*`.
    #[expect(missing_docs, reason = "said above")]
    Connection { register: u32, key: u32 },
    /// Loads what the routing tables say, `NFT_FIB_RESULT_*`, about what `flags` name, `NFTA_FIB_F_*`.
    #[expect(missing_docs, reason = "said above")]
    Fib { register: u32, result: u32, flags: u32 },
    /// Puts a value into a register. It is only written: read, it is an [`Other`](Self::Other).
    #[expect(missing_docs, reason = "said above")]
    Immediate { register: u32, value: Vec<u8> },
    /// Ends the rule unless the set has the register's value, or if it has. A map gives the verdict.
    #[expect(missing_docs, reason = "said above")]
    Lookup { register: u32, set: String, negated: bool, is_map: bool },
    /// Gives the packet the address of the device that it leaves on. `flags` are `NF_NAT_RANGE_*`.
    #[expect(missing_docs, reason = "said above")]
    Masquerade { flags: u32 },
    /// A match of iptables other than a comment, with the kernel's structure for it.
    #[expect(missing_docs, reason = "said above")]
    Match { name: String, info: Vec<u8> },
    /// Loads a fact about the packet, `NFT_META_*`.
    #[expect(missing_docs, reason = "said above")]
    Meta { register: u32, key: u32 },
    /// Gives the packet the destination address and port that these registers hold. `family` is `NFPROTO_*`. It is only written:
    /// read, it is a [`Nat`](Self::Nat).
    #[expect(missing_docs, reason = "said above")]
    DestinationNat { family: u32, address: u32, port: u32 },
    /// Gives the packet another source, or another destination.
    #[expect(missing_docs, reason = "said above")]
    Nat { source: bool },
    /// Anything else, by its name.
    Other(String),
    /// Loads bytes of the packet; `base` is `NFT_PAYLOAD_*`.
    #[expect(missing_docs, reason = "said above")]
    Payload { register: u32, base: u32, offset: u32, length: u32 },
    /// Ends the rule unless the register is within these bounds, or if it is.
    #[expect(missing_docs, reason = "said above")]
    Range { register: u32, negated: bool, from: Vec<u8>, to: Vec<u8> },
    /// A target of iptables that is no verdict.
    Target(String),
    /// Says what happens to the packet.
    Verdict(Verdict),
}

/// How a register is compared, byte by byte from the first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Expression {
    /// The packet passes this base chain.
    pub const ACCEPT: Self = Self::Verdict(Verdict::Accept);
    /// The first register, which holds 16 bytes.
    pub const REGISTER: u32 = 1;
    /// The register that a verdict is put into.
    pub const VERDICT_REGISTER: u32 = 0;
    /// The name of the device that the packet came in by, `NFT_META_IIFNAME`.
    pub const META_INPUT: u32 = 6;
    /// The name of the device that the packet leaves by, `NFT_META_OIFNAME`.
    pub const META_OUTPUT: u32 = 7;
    /// The packet's family, `NFT_META_NFPROTO`.
    pub const META_FAMILY: u32 = 15;
    /// The protocol above IP, `NFT_META_L4PROTO`.
    pub const META_PROTOCOL: u32 = 16;
    /// The link header, `NFT_PAYLOAD_LL_HEADER`.
    pub const LINK_HEADER: u32 = 0;
    /// The network header, `NFT_PAYLOAD_NETWORK_HEADER`.
    pub const NETWORK_HEADER: u32 = 1;
    /// The transport header, `NFT_PAYLOAD_TRANSPORT_HEADER`.
    pub const TRANSPORT_HEADER: u32 = 2;

    /// Compares the address at `offset` of the network header with a block. Only whole bytes of a prefix are loaded if it ends
    /// with one, as nft does.
    pub fn compare_address(offset: u32, block: IpNetwork, negated: bool) -> Vec<Self> {
        let (octets, mask) = match block {
            IpNetwork::V4(v4) => (v4.network().octets().to_vec(), v4.mask().octets().to_vec()),
            IpNetwork::V6(v6) => (v6.network().octets().to_vec(), v6.mask().octets().to_vec()),
        };
        let (register, base) = (Self::REGISTER, Self::NETWORK_HEADER);
        let load = |length: usize| Self::Payload { register, base, offset, length: length as u32 };
        let whole = usize::from(block.prefix() / 8);
        if block.prefix().is_multiple_of(8) && whole > 0 {
            vec![load(whole), Self::compare(negated, octets[..whole].to_vec())]
        } else {
            vec![load(octets.len()), Self::and(mask), Self::compare(negated, octets)]
        }
    }

    /// Ends the rule unless the first register holds `value`, or if it does.
    pub fn compare(negated: bool, value: Vec<u8>) -> Self {
        let comparison = if negated { Comparison::NotEqual } else { Comparison::Equal };
        Self::Compare { register: Self::REGISTER, comparison, value }
    }

    /// Keeps the bits of the first register that `mask` has.
    pub fn and(mask: Vec<u8>) -> Self {
        let xor = vec![0; mask.len()];
        Self::Bitwise { source: Self::REGISTER, destination: Self::REGISTER, mask, xor }
    }

    /// Writes it as an element of a rule's list.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        push_nested(out, NFTA_LIST_ELEM, |out| {
            push_text(out, NFTA_EXPR_NAME, self.name());
            push_nested(out, NFTA_EXPR_DATA, |out| self.write_data(out));
        });
    }

    /// The kernel's name for it.
    fn name(&self) -> &str {
        match self {
            Self::Bitwise { .. } => "bitwise",
            Self::Comment(_) | Self::Match { .. } => "match",
            Self::Compare { .. } => "cmp",
            Self::Connection { .. } => "ct",
            Self::DestinationNat { .. } | Self::Nat { .. } => "nat",
            Self::Fib { .. } => "fib",
            Self::Immediate { .. } => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Masquerade { .. } => "masq",
            Self::Meta { .. } => "meta",
            Self::Other(name) => name,
            Self::Payload { .. } => "payload",
            Self::Range { .. } => "range",
            Self::Target(_) => "target",
            Self::Verdict(_) => "immediate",
        }
    }

    fn write_data(&self, out: &mut Vec<u8>) {
        let data = |out: &mut Vec<u8>, kind, value: &[u8]| {
            push_nested(out, kind, |out| push_attribute(out, NFTA_DATA_VALUE, value));
        };
        match self {
            Self::Bitwise { source, destination, mask, xor } => {
                push_u32_be(out, NFTA_BITWISE_SREG, *source);
                push_u32_be(out, NFTA_BITWISE_DREG, *destination);
                push_u32_be(out, NFTA_BITWISE_LEN, mask.len() as u32);
                data(out, NFTA_BITWISE_MASK, mask);
                data(out, NFTA_BITWISE_XOR, xor);
            }
            Self::Comment(text) => {
                push_text(out, NFTA_MATCH_NAME, "comment");
                push_u32_be(out, NFTA_MATCH_REV, 0);
                push_text(out, NFTA_MATCH_INFO, text);
            }
            Self::Compare { register, comparison, value } => {
                push_u32_be(out, NFTA_CMP_SREG, *register);
                push_u32_be(out, NFTA_CMP_OP, *comparison as u32);
                data(out, NFTA_CMP_DATA, value);
            }
            Self::Connection { register, key } => {
                push_u32_be(out, NFTA_CT_DREG, *register);
                push_u32_be(out, NFTA_CT_KEY, *key);
            }
            Self::DestinationNat { family, address, port } => {
                push_u32_be(out, NFTA_NAT_TYPE, NFT_NAT_DNAT);
                push_u32_be(out, NFTA_NAT_FAMILY, *family);
                push_u32_be(out, NFTA_NAT_REG_ADDR_MIN, *address);
                push_u32_be(out, NFTA_NAT_REG_PROTO_MIN, *port);
            }
            Self::Fib { register, result, flags } => {
                push_u32_be(out, NFTA_FIB_DREG, *register);
                push_u32_be(out, NFTA_FIB_RESULT, *result);
                push_u32_be(out, NFTA_FIB_FLAGS, *flags);
            }
            Self::Immediate { register, value } => {
                push_u32_be(out, NFTA_IMMEDIATE_DREG, *register);
                data(out, NFTA_IMMEDIATE_DATA, value);
            }
            Self::Lookup { register, set, negated, is_map } => {
                push_text(out, NFTA_LOOKUP_SET, set);
                push_u32_be(out, NFTA_LOOKUP_SREG, *register);
                if *is_map {
                    push_u32_be(out, NFTA_LOOKUP_DREG, Self::VERDICT_REGISTER);
                }
                push_u32_be(out, NFTA_LOOKUP_FLAGS, if *negated { NFT_LOOKUP_F_INV } else { 0 });
            }
            Self::Masquerade { flags } if *flags != 0 => push_u32_be(out, NFTA_MASQ_FLAGS, *flags),
            Self::Masquerade { .. } | Self::Other(_) => {}
            Self::Match { name, info } => {
                push_text(out, NFTA_MATCH_NAME, name);
                push_attribute(out, NFTA_MATCH_INFO, info);
            }
            Self::Meta { register, key } => {
                push_u32_be(out, NFTA_META_DREG, *register);
                push_u32_be(out, NFTA_META_KEY, *key);
            }
            Self::Nat { source } => {
                push_u32_be(out, NFTA_NAT_TYPE, if *source { NFT_NAT_SNAT } else { NFT_NAT_DNAT });
            }
            Self::Payload { register, base, offset, length } => {
                push_u32_be(out, NFTA_PAYLOAD_DREG, *register);
                push_u32_be(out, NFTA_PAYLOAD_BASE, *base);
                push_u32_be(out, NFTA_PAYLOAD_OFFSET, *offset);
                push_u32_be(out, NFTA_PAYLOAD_LEN, *length);
            }
            Self::Range { register, negated, from, to } => {
                push_u32_be(out, NFTA_RANGE_SREG, *register);
                push_u32_be(out, NFTA_RANGE_OP, u32::from(*negated));
                data(out, NFTA_RANGE_FROM_DATA, from);
                data(out, NFTA_RANGE_TO_DATA, to);
            }
            Self::Target(name) => push_text(out, NFTA_TARGET_NAME, name),
            Self::Verdict(verdict) => {
                push_u32_be(out, NFTA_IMMEDIATE_DREG, Self::VERDICT_REGISTER);
                push_nested(out, NFTA_IMMEDIATE_DATA, |out| verdict.write(out));
            }
        }
    }

    /// Reads an element of a rule's list.
    pub(super) fn read(element: Attribute<'_>) -> Self {
        let mut name = "";
        let mut data = None;
        for attribute in element.nested() {
            match attribute.kind {
                NFTA_EXPR_NAME => name = attribute.text().unwrap_or_default(),
                NFTA_EXPR_DATA => data = Some(attribute),
                _ => {}
            }
        }
        let known = data.and_then(|data| Self::read_known(name, data));
        known.unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn read_known(name: &str, data: Attribute<'_>) -> Option<Self> {
        let get = |kind| data.nested().find(|attribute| attribute.kind == kind);
        let number = |kind| get(kind)?.u32_be();
        let text = |kind| Some(get(kind)?.text()?.to_owned());
        let value = |kind| {
            let inner = get(kind)?.nested().find(|inner| inner.kind == NFTA_DATA_VALUE)?;
            Some(inner.value.to_vec())
        };
        Some(match name {
            "bitwise" => {
                if number(NFTA_BITWISE_OP).is_some_and(|operation| operation != 0) {
                    return None;
                }
                Self::Bitwise {
                    source: number(NFTA_BITWISE_SREG)?,
                    destination: number(NFTA_BITWISE_DREG)?,
                    mask: value(NFTA_BITWISE_MASK)?,
                    xor: value(NFTA_BITWISE_XOR)?,
                }
            }
            "cmp" => Self::Compare {
                register: number(NFTA_CMP_SREG)?,
                comparison: Comparison::of(number(NFTA_CMP_OP)?)?,
                value: value(NFTA_CMP_DATA)?,
            },
            // Those that set something have no such register.
            "ct" => match number(NFTA_CT_DREG) {
                Some(register) => Self::Connection { register, key: number(NFTA_CT_KEY)? },
                None => Self::Other("ct set".into()),
            },
            "fib" => Self::Fib {
                register: number(NFTA_FIB_DREG)?,
                result: number(NFTA_FIB_RESULT)?,
                flags: number(NFTA_FIB_FLAGS)?,
            },
            "immediate" if number(NFTA_IMMEDIATE_DREG)? == Self::VERDICT_REGISTER => {
                Self::Verdict(Verdict::read(get(NFTA_IMMEDIATE_DATA)?)?)
            }
            "lookup" => {
                let result = number(NFTA_LOOKUP_DREG);
                if result.is_some_and(|register| register != Self::VERDICT_REGISTER) {
                    return Some(Self::Other("map".into()));
                }
                let flags = number(NFTA_LOOKUP_FLAGS).unwrap_or_default();
                Self::Lookup {
                    register: number(NFTA_LOOKUP_SREG)?,
                    set: text(NFTA_LOOKUP_SET)?,
                    negated: flags & NFT_LOOKUP_F_INV != 0,
                    is_map: result.is_some(),
                }
            }
            "masq" if get(NFTA_MASQ_REG_PROTO_MIN).is_none() => {
                Self::Masquerade { flags: number(NFTA_MASQ_FLAGS).unwrap_or_default() }
            }
            "match" => {
                let (name, info) = (text(NFTA_MATCH_NAME)?, get(NFTA_MATCH_INFO)?);
                match &*name {
                    "comment" => Self::Comment(info.text()?.to_owned()),
                    _ => Self::Match { name, info: info.value.to_vec() },
                }
            }
            "meta" => match number(NFTA_META_DREG) {
                Some(register) => Self::Meta { register, key: number(NFTA_META_KEY)? },
                None => Self::Other("meta set".into()),
            },
            "nat" => Self::Nat { source: number(NFTA_NAT_TYPE)? == NFT_NAT_SNAT },
            "payload" => match number(NFTA_PAYLOAD_DREG) {
                Some(register) => Self::Payload {
                    register,
                    base: number(NFTA_PAYLOAD_BASE)?,
                    offset: number(NFTA_PAYLOAD_OFFSET)?,
                    length: number(NFTA_PAYLOAD_LEN)?,
                },
                None => Self::Other("payload set".into()),
            },
            "range" => Self::Range {
                register: number(NFTA_RANGE_SREG)?,
                negated: number(NFTA_RANGE_OP)? == 1,
                from: value(NFTA_RANGE_FROM_DATA)?,
                to: value(NFTA_RANGE_TO_DATA)?,
            },
            "target" => Self::Target(text(NFTA_TARGET_NAME)?),
            _ => return None,
        })
    }
}

impl Comparison {
    /// `NFT_CMP_*`.
    const fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Equal,
            1 => Self::NotEqual,
            2 => Self::Less,
            3 => Self::LessOrEqual,
            4 => Self::Greater,
            5 => Self::GreaterOrEqual,
            _ => return None,
        })
    }
}

#[cfg(test)]
#[path = "expression_tests.rs"]
mod tests;
