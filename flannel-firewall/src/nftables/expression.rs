//! What a rule is made of: the expressions that nft compiles it to, byte for byte.

use flannel_netlink::Attribute;

use crate::{
    rules::{Action, Family, KUBE_PROXY_MARK, Match, Rule},
    wire::{Writer, number},
};

/// One expression, with its values as they are in packets and registers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Expression {
    /// Keeps the bits of the register that `mask` has.
    And {
        mask: Vec<u8>,
    },
    /// What iptables-nft keeps as comment.
    Comment(String),
    /// Ends the rule unless the register holds `value`, or if it does.
    Compare {
        negated: bool,
        value: Vec<u8>,
    },
    /// Loads the name of the device that the packet came in on, or leaves on, into the register.
    LoadDevice {
        leaves: bool,
    },
    /// Loads the packet's family into the register.
    LoadFamily,
    /// Loads the packet's mark into the register.
    LoadMark,
    /// Loads bytes of the network header into the register.
    LoadNetwork {
        offset: u32,
        length: u32,
    },
    /// Loads the state of the packet's connection into the register.
    LoadState,
    Masquerade {
        flags: u32,
    },
    /// A match of iptables other than a comment, with the kernel's structure for it.
    Match {
        name: String,
        info: Vec<u8>,
    },
    /// Gives the packet another source, or another destination.
    Nat {
        source: bool,
    },
    /// Anything that nobody here asks about, by its name.
    Other(String),
    /// A target of iptables that is no verdict.
    Target(String),
    Verdict {
        code: i32,
        chain: Option<String>,
    },
}

impl Expression {
    /// What nft makes of `rule`.
    pub(crate) fn compile(family: Family, rule: &Rule) -> Vec<Self> {
        let mut expressions = Vec::new();
        if rule.marked {
            let mark = KUBE_PROXY_MARK.to_ne_bytes().to_vec();
            expressions.push(Self::LoadMark);
            expressions.push(Self::And { mask: mark.clone() });
            expressions.push(Self::Compare { negated: false, value: mark });
        }
        let (source, destination) = match family {
            Family::Ipv4 => (12, 16),
            Family::Ipv6 => (8, 24),
        };
        for (offset, wanted) in [(source, rule.source), (destination, rule.destination)] {
            if let Some(wanted) = wanted {
                compare(offset, wanted, &mut expressions);
            }
        }
        expressions.push(match rule.action {
            Action::Accept => Self::Verdict { code: NF_ACCEPT, chain: None },
            Action::Masquerade { random_ports } => {
                Self::Masquerade { flags: if random_ports { RANDOM_FULLY } else { 0 } }
            }
            Action::Return => Self::Verdict { code: NFT_RETURN, chain: None },
        });
        expressions
    }

    /// Writes it as an element of a rule's list.
    pub(crate) fn write(&self, out: &mut Writer) {
        let element = |out: &mut Writer, name: &str, data: &dyn Fn(&mut Writer)| {
            out.nest(NFTA_LIST_ELEM, |out| {
                out.text(NFTA_EXPR_NAME, name);
                out.nest(NFTA_EXPR_DATA, data);
            });
        };
        let load_meta = |out: &mut Writer, key| {
            element(out, "meta", &|out| {
                out.number(NFTA_META_DREG, REGISTER);
                out.number(NFTA_META_KEY, key);
            });
        };
        match self {
            Self::And { mask } => element(out, "bitwise", &|out| {
                out.number(NFTA_BITWISE_SREG, REGISTER);
                out.number(NFTA_BITWISE_DREG, REGISTER);
                out.number(NFTA_BITWISE_LEN, mask.len() as u32);
                out.nest(NFTA_BITWISE_MASK, |out| out.attribute(NFTA_DATA_VALUE, mask));
                let nothing = vec![0; mask.len()];
                out.nest(NFTA_BITWISE_XOR, |out| out.attribute(NFTA_DATA_VALUE, &nothing));
            }),
            Self::Comment(text) => element(out, "match", &|out| {
                out.text(NFTA_MATCH_NAME, "comment");
                out.number(NFTA_MATCH_REV, 0);
                out.text(NFTA_MATCH_INFO, text);
            }),
            Self::Compare { negated, value } => element(out, "cmp", &|out| {
                out.number(NFTA_CMP_SREG, REGISTER);
                out.number(NFTA_CMP_OP, if *negated { NFT_CMP_NEQ } else { NFT_CMP_EQ });
                out.nest(NFTA_CMP_DATA, |out| out.attribute(NFTA_DATA_VALUE, value));
            }),
            Self::LoadDevice { leaves } => load_meta(out, device_key(*leaves)),
            Self::LoadFamily => load_meta(out, NFT_META_NFPROTO),
            Self::LoadMark => load_meta(out, NFT_META_MARK),
            Self::LoadNetwork { offset, length } => element(out, "payload", &|out| {
                out.number(NFTA_PAYLOAD_DREG, REGISTER);
                out.number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
                out.number(NFTA_PAYLOAD_OFFSET, *offset);
                out.number(NFTA_PAYLOAD_LEN, *length);
            }),
            Self::LoadState => element(out, "ct", &|out| {
                out.number(NFTA_CT_DREG, REGISTER);
                out.number(NFTA_CT_KEY, NFT_CT_STATE);
            }),
            Self::Masquerade { flags } => element(out, "masq", &|out| {
                if *flags != 0 {
                    out.number(NFTA_MASQ_FLAGS, *flags);
                }
            }),
            Self::Match { name, info } => element(out, "match", &|out| {
                out.text(NFTA_MATCH_NAME, name);
                out.attribute(NFTA_MATCH_INFO, info);
            }),
            Self::Nat { source } => element(out, "nat", &|out| {
                out.number(NFTA_NAT_TYPE, if *source { NFT_NAT_SNAT } else { NFT_NAT_DNAT });
            }),
            Self::Other(name) => element(out, name, &|_| {}),
            Self::Target(name) => element(out, "target", &|out| out.text(NFTA_TARGET_NAME, name)),
            Self::Verdict { code, chain } => element(out, "immediate", &|out| {
                out.number(NFTA_IMMEDIATE_DREG, VERDICT_REGISTER);
                out.nest(NFTA_IMMEDIATE_DATA, |out| {
                    out.nest(NFTA_DATA_VERDICT, |out| {
                        out.number(NFTA_VERDICT_CODE, code.cast_unsigned());
                        if let Some(chain) = chain {
                            out.text(NFTA_VERDICT_CHAIN, chain);
                        }
                    });
                });
            }),
        }
    }

    /// Reads an element of a rule's list.
    pub(crate) fn read(element: Attribute<'_>) -> Self {
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
        let is = |kind, wanted| get(kind).and_then(number) == Some(wanted);
        let value = |kind| {
            let inner = get(kind)?.nested().find(|inner| inner.kind == NFTA_DATA_VALUE)?;
            Some(inner.value.to_vec())
        };
        match name {
            "bitwise" if is(NFTA_BITWISE_SREG, REGISTER) && is(NFTA_BITWISE_DREG, REGISTER) => {
                let plain = value(NFTA_BITWISE_XOR)?.iter().all(|byte| *byte == 0)
                    && get(NFTA_BITWISE_OP).is_none_or(|op| number(op) == Some(0));
                plain.then_some(Self::And { mask: value(NFTA_BITWISE_MASK)? })
            }
            "cmp" if is(NFTA_CMP_SREG, REGISTER) => {
                let negated = match number(get(NFTA_CMP_OP)?)? {
                    NFT_CMP_EQ => false,
                    NFT_CMP_NEQ => true,
                    _ => return None,
                };
                Some(Self::Compare { negated, value: value(NFTA_CMP_DATA)? })
            }
            "ct" if is(NFTA_CT_DREG, REGISTER) && is(NFTA_CT_KEY, NFT_CT_STATE) => {
                Some(Self::LoadState)
            }
            "immediate" if is(NFTA_IMMEDIATE_DREG, VERDICT_REGISTER) => {
                let data = get(NFTA_IMMEDIATE_DATA)?;
                let verdict = data.nested().find(|inner| inner.kind == NFTA_DATA_VERDICT)?;
                let inner = |kind| verdict.nested().find(|inner| inner.kind == kind);
                let code = number(inner(NFTA_VERDICT_CODE)?)?.cast_signed();
                let chain = inner(NFTA_VERDICT_CHAIN).and_then(|chain| chain.text());
                Some(Self::Verdict { code, chain: chain.map(str::to_owned) })
            }
            "masq" if get(NFTA_MASQ_REG_PROTO_MIN).is_none() => {
                let flags = get(NFTA_MASQ_FLAGS).map_or(Some(0), number)?;
                Some(Self::Masquerade { flags })
            }
            "match" => {
                let (name, info) = (get(NFTA_MATCH_NAME)?.text()?, get(NFTA_MATCH_INFO)?);
                Some(match name {
                    "comment" => Self::Comment(info.text()?.to_owned()),
                    _ => Self::Match { name: name.to_owned(), info: info.value.to_vec() },
                })
            }
            "meta" if is(NFTA_META_DREG, REGISTER) => match number(get(NFTA_META_KEY)?)? {
                NFT_META_IIFNAME => Some(Self::LoadDevice { leaves: false }),
                NFT_META_MARK => Some(Self::LoadMark),
                NFT_META_NFPROTO => Some(Self::LoadFamily),
                NFT_META_OIFNAME => Some(Self::LoadDevice { leaves: true }),
                _ => None,
            },
            "nat" => Some(Self::Nat { source: is(NFTA_NAT_TYPE, NFT_NAT_SNAT) }),
            "payload"
                if is(NFTA_PAYLOAD_DREG, REGISTER)
                    && is(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER) =>
            {
                let offset = number(get(NFTA_PAYLOAD_OFFSET)?)?;
                Some(Self::LoadNetwork { offset, length: number(get(NFTA_PAYLOAD_LEN)?)? })
            }
            "target" => Some(Self::Target(get(NFTA_TARGET_NAME)?.text()?.to_owned())),
            _ => None,
        }
    }
}

/// Compares the address at `offset` with a block. Only whole bytes of a prefix are loaded if it ends with one, as nft does.
fn compare(offset: u32, Match { block, negated }: Match, out: &mut Vec<Expression>) {
    let (octets, mask) = match block {
        ipnetwork::IpNetwork::V4(v4) => {
            (v4.network().octets().to_vec(), v4.mask().octets().to_vec())
        }
        ipnetwork::IpNetwork::V6(v6) => {
            (v6.network().octets().to_vec(), v6.mask().octets().to_vec())
        }
    };
    let whole = usize::from(block.prefix() / 8);
    if block.prefix() % 8 == 0 && whole > 0 {
        out.push(Expression::LoadNetwork { offset, length: whole as u32 });
        out.push(Expression::Compare { negated, value: octets[..whole].to_vec() });
    } else {
        out.push(Expression::LoadNetwork { offset, length: octets.len() as u32 });
        out.push(Expression::And { mask });
        out.push(Expression::Compare { negated, value: octets });
    }
}

const fn device_key(leaves: bool) -> u32 {
    if leaves { NFT_META_OIFNAME } else { NFT_META_IIFNAME }
}

/// `NFT_REG_1`, the first of those that hold 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of linux/netfilter/nf_nat.h.
const RANDOM_FULLY: u32 = 1 << 4;

// linux/netfilter.h
/// The packet is gone.
pub(crate) const NF_DROP: i32 = 0;
/// The packet passes this chain and those that led here.
pub(crate) const NF_ACCEPT: i32 = 1;

// linux/netfilter/nf_tables.h
/// Back to the chain that led here.
pub(crate) const NFT_RETURN: i32 = -5;
/// A jump to another chain.
pub(crate) const NFT_JUMP: i32 = -3;
/// The same without return.
pub(crate) const NFT_GOTO: i32 = -4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_MASQ_FLAGS: u16 = 1;
const NFTA_MASQ_REG_PROTO_MIN: u16 = 2;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_REV: u16 = 2;
const NFTA_MATCH_INFO: u16 = 3;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_MARK: u32 = 3;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFTA_NAT_TYPE: u16 = 1;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFTA_TARGET_NAME: u16 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{FAMILY_HEADER, messages};

    /// Writes expressions and reads them back.
    fn round_trip(expressions: &[Expression]) -> Vec<Expression> {
        let mut writer = Writer::default();
        writer.message(0, 0, 0, (2, 0), |out| {
            out.nest(4, |out| expressions.iter().for_each(|expression| expression.write(out)));
        });
        let message = messages(writer.bytes()).next().unwrap();
        let list = message.attributes(FAMILY_HEADER).next().unwrap();
        list.nested().map(Expression::read).collect()
    }

    #[test]
    fn what_only_others_write_is_read_too() {
        let expressions = [
            Expression::LoadDevice { leaves: false },
            Expression::LoadDevice { leaves: true },
            Expression::LoadFamily,
            Expression::Match { name: "mark".into(), info: vec![1, 2, 3, 4] },
            Expression::Nat { source: true },
            Expression::Nat { source: false },
            Expression::Target("REJECT".into()),
            Expression::Other("lookup".into()),
        ];
        assert_eq!(round_trip(&expressions), expressions);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            bits: u128, length in 0u8..=128, negated: bool, marked: bool, which in 0..4usize,
        ) {
            let (family, block) = if length > 32 || bits % 2 == 0 {
                let block = ipnetwork::Ipv6Network::new(bits.into(), length).unwrap();
                (Family::Ipv6, block.into())
            } else {
                let block = ipnetwork::Ipv4Network::new((bits as u32).into(), length).unwrap();
                (Family::Ipv4, block.into())
            };
            let action = [
                Action::Accept,
                Action::Return,
                Action::Masquerade { random_ports: false },
                Action::Masquerade { random_ports: true },
            ][which];
            let destination = Some(Match { block, negated });
            let rule = Rule { marked, source: None, destination, action };
            let expressions = Expression::compile(family, &rule);
            prop_assert_eq!(round_trip(&expressions), expressions);
        }

        #[test]
        fn any_bytes_are_read_without_panic(
            name in prop::sample::select(vec![
                "bitwise", "cmp", "immediate", "masq", "match", "meta", "nat", "payload", "target", "x",
            ]),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut writer = Writer::default();
            writer.message(0, 0, 0, (2, 0), |out| {
                out.nest(NFTA_LIST_ELEM, |out| {
                    out.text(NFTA_EXPR_NAME, name);
                    out.attribute(NFTA_EXPR_DATA, &bytes);
                });
            });
            let message = messages(writer.bytes()).next().unwrap();
            let _ = message.attributes(FAMILY_HEADER).map(Expression::read).count();
        }
    }
}
