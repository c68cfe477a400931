//! Bytes of which some bits may be unknown, and the registers of nf_tables that hold them.

use ipnetwork::IpNetwork;

use super::ternary::Ternary;
use crate::nftables::Comparison;

/// Bytes of which some bits may be unknown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Bits {
    /// Unknown bits are zero here.
    value: Vec<u8>,
    known: Vec<u8>,
}

impl Bits {
    pub(super) fn known(value: impl Into<Vec<u8>>) -> Self {
        let value = value.into();
        Self { known: vec![0xff; value.len()], value }
    }

    pub(super) fn unknown(length: usize) -> Self {
        Self { value: vec![0; length], known: vec![0; length] }
    }

    /// Any address of the block.
    pub(super) fn of_block(block: IpNetwork) -> Self {
        let (value, known) = match block {
            IpNetwork::V4(v4) => (v4.network().octets().to_vec(), v4.mask().octets().to_vec()),
            IpNetwork::V6(v6) => (v6.network().octets().to_vec(), v6.mask().octets().to_vec()),
        };
        Self { value, known }
    }

    pub(super) fn len(&self) -> usize {
        self.value.len()
    }

    pub(super) fn append(&mut self, other: Self) {
        self.value.extend(other.value);
        self.known.extend(other.known);
    }

    pub(super) fn slice(&self, from: usize, length: usize) -> Option<Self> {
        let to = from.checked_add(length)?;
        let cut = |bytes: &[u8]| Some(bytes.get(from..to)?.to_vec());
        Some(Self { value: cut(&self.value)?, known: cut(&self.known)? })
    }

    /// `(self & mask) ^ xor`: what the mask removes is known to be zero.
    pub(super) fn masked(&self, mask: &[u8], xor: &[u8]) -> Self {
        let each = self.value.iter().zip(&self.known).zip(mask.iter().zip(xor));
        let (value, known) = each
            .map(|((value, known), (mask, xor))| {
                let known = known | !mask;
                ((value & mask ^ xor) & known, known)
            })
            .unzip();
        Self { value, known }
    }

    pub(super) fn compare(&self, comparison: Comparison, other: &[u8]) -> Ternary {
        let Some(bits) = self.slice(0, other.len()) else { return Ternary::Unknown };
        let low = bits.value.clone();
        let high: Vec<_> =
            bits.value.iter().zip(&bits.known).map(|(value, known)| value | !known).collect();
        let less = |strict: bool| match strict {
            _ if &*high < other || !strict && &*high == other => Ternary::True,
            _ if &*low > other || strict && &*low == other => Ternary::False,
            _ => Ternary::Unknown,
        };
        match comparison {
            Comparison::Equal => bits.equals(other),
            Comparison::NotEqual => bits.equals(other).not_if(true),
            Comparison::Less => less(true),
            Comparison::LessOrEqual => less(false),
            Comparison::Greater => less(false).not_if(true),
            Comparison::GreaterOrEqual => less(true).not_if(true),
        }
    }

    fn equals(&self, other: &[u8]) -> Ternary {
        let mut each = self.value.iter().zip(&self.known).zip(other);
        if each.any(|((value, known), other)| (value ^ other) & known != 0) {
            return Ternary::False;
        }
        if self.known.iter().all(|known| *known == 0xff) { Ternary::True } else { Ternary::Unknown }
    }
}

/// The registers while a rule is read: four of 16 bytes, which are also sixteen of four.
#[derive(Clone, Debug)]
pub(super) struct Registers(Bits);

impl Default for Registers {
    fn default() -> Self {
        Self(Bits::unknown(BYTES))
    }
}

impl Registers {
    /// What is in the register and those behind it.
    pub(super) fn get(&self, register: u32) -> Bits {
        let from = place(register).unwrap_or(BYTES);
        self.0.slice(from, BYTES - from).unwrap_or_default()
    }

    /// Loads bytes; the rest of the last four is zero, as in the kernel.
    pub(super) fn set(&mut self, register: u32, mut bits: Bits) {
        bits.append(Bits::known(vec![0; bits.len().next_multiple_of(4) - bits.len()]));
        let Some(from) = place(register) else { return };
        let to = (from + bits.len()).min(BYTES);
        self.0.value[from..to].copy_from_slice(&bits.value[..to - from]);
        self.0.known[from..to].copy_from_slice(&bits.known[..to - from]);
    }
}

/// Where a register begins: 1 to 4 have 16 bytes, from 8 on they have four (`NFT_REG32_00`).
fn place(register: u32) -> Option<usize> {
    match register {
        1..=4 => Some((register as usize - 1) * 16),
        8..=23 => Some((register as usize - 8) * 4),
        _ => None,
    }
}

const BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the unknown bits are, what is said about all of them is true of each.
        #[test]
        fn what_is_certain_holds_for_every_value(
            value: u16, known: u16, other: u16, mask: u16, xor: u16, unknown: u16, which in 0..6usize,
        ) {
            use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
            let comparison = [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual][which];
            let bytes = |number: u16| number.to_be_bytes().to_vec();
            let bits = Bits { value: bytes(value & known), known: bytes(known) };
            let said = bits.masked(&bytes(mask), &bytes(xor)).compare(comparison, &bytes(other));
            let one = (value & known | unknown & !known) & mask ^ xor;
            let holds = match comparison {
                Equal => one == other,
                NotEqual => one != other,
                Less => one < other,
                LessOrEqual => one <= other,
                Greater => one > other,
                GreaterOrEqual => one >= other,
            };
            prop_assert!(said == Ternary::Unknown || said == Ternary::from(holds), "{:?}", said);
            if known == u16::MAX {
                prop_assert_ne!(said, Ternary::Unknown);
            }
        }

        #[test]
        fn any_register_may_be_asked_for(register: u32, length in 0..80usize) {
            let mut registers = Registers::default();
            registers.set(register, Bits::known(vec![1; length]));
            let _ = registers.get(register).compare(Comparison::Equal, &vec![1; length]);
        }
    }
}
