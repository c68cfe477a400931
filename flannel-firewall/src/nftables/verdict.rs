//! What becomes of a packet.

use flannel_netlink::{Attribute, push_nested, push_text, push_u32_be};

use super::uapi::{NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE};

/// What happens to a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// It passes this base chain.
    Accept,
    /// The next rule decides.
    Continue,
    /// It is gone.
    Drop,
    /// The chain decides, without return.
    Goto(String),
    /// The chain decides, and if it does not, the next rule.
    Jump(String),
    /// Anything else, by its code, such as a queue to userspace.
    Other(i32),
    /// The chain that led here decides on.
    Return,
}

impl Verdict {
    /// Reads what an attribute of data holds, if that is a verdict.
    pub(super) fn read(data: Attribute<'_>) -> Option<Self> {
        let verdict = data.nested().find(|inner| inner.kind == NFTA_DATA_VERDICT)?;
        let inner = |kind| verdict.nested().find(|inner| inner.kind == kind);
        let chain = || Some(inner(NFTA_VERDICT_CHAIN)?.text()?.to_owned());
        Some(match inner(NFTA_VERDICT_CODE)?.u32_be()?.cast_signed() {
            NF_ACCEPT => Self::Accept,
            NF_DROP => Self::Drop,
            NFT_CONTINUE => Self::Continue,
            NFT_GOTO => Self::Goto(chain()?),
            NFT_JUMP => Self::Jump(chain()?),
            NFT_RETURN => Self::Return,
            code => Self::Other(code),
        })
    }

    /// Writes it as the data of an expression.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (code, chain) = match self {
            Self::Accept => (NF_ACCEPT, None),
            Self::Continue => (NFT_CONTINUE, None),
            Self::Drop => (NF_DROP, None),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Other(code) => (*code, None),
            Self::Return => (NFT_RETURN, None),
        };
        push_nested(out, NFTA_DATA_VERDICT, |out| {
            push_u32_be(out, NFTA_VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                push_text(out, NFTA_VERDICT_CHAIN, chain);
            }
        });
    }
}

// linux/netfilter.h, linux/netfilter/nf_tables.h
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_CONTINUE: i32 = -1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;
