//! The Internet checksum, RFC 1071.

/// The ones' complement sum of `bytes` as big-endian words, folded to 16 bits and not complemented. An odd last byte counts as
/// the upper half of a word.
pub fn sum(bytes: &[u8]) -> u16 {
    // In the machine's own byte order: the sum comes out swapped as a whole (RFC 1071, 2 B). A word of 64 bits is added to one of two
    // sums of 128 with two instructions, on any processor and at any level of optimization; they do not overflow below 2^64 words.
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut sums = [0_u128; 2];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        sums[0] += u128::from(u64::from_ne_bytes(words[0]));
        sums[1] += u128::from(u64::from_ne_bytes(words[1]));
        sums[0] += u128::from(u64::from_ne_bytes(words[2]));
        sums[1] += u128::from(u64::from_ne_bytes(words[3]));
    }
    let sum = sums[0] + sums[1];
    let mut total = (sum >> 64) as u64 + (sum as u64 >> 32) + (sum as u64 & 0xffff_ffff);
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u16::from_be(fold(total))
}

/// The ones' complement sum of two sums.
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum after one 16-bit word that it covers changed from `old` to `new`: RFC 1624, equation 3.
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0, |sum, word| {
            let low = word.get(1).copied().unwrap_or(0);
            add(sum, u16::from_be_bytes([word[0], low]))
        })
    }

    #[test]
    fn the_sum_of_the_example_in_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(sum(&bytes), plain(&bytes));
        }

        #[test]
        fn many_high_bytes_carry(len in 0_usize..4000) {
            let bytes = vec![0xff; len];
            prop_assert_eq!(sum(&bytes), plain(&bytes));
        }

        #[test]
        fn an_updated_checksum_is_that_of_the_changed_words(
            mut words in proptest::collection::vec(any::<u16>(), 2..20), at: prop::sample::Index, new: u16,
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            let before = !sum(&bytes(&words));
            let at = at.index(words.len());
            let old = std::mem::replace(&mut words[at], new);
            // All words 0 is the one set that has no sum of 0xffff.
            prop_assume!(words.iter().any(|word| *word != 0));
            prop_assert_eq!(updated(before, old, new), !sum(&bytes(&words)));
        }
    }
}
