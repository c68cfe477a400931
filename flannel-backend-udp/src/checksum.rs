//! The Internet checksum, RFC 1071.

/// The ones' complement sum of `bytes` as big-endian words, folded to 16 bits and not complemented. An odd last byte counts as
/// the upper half of a word.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // Shorter ones are summed before the processor is asked.
    #[cfg(target_arch = "x86_64")]
    if bytes.len() > 128
        && let Some(sum) = wide::sum(bytes)
    {
        return sum;
    }
    sum_of_words(bytes)
}

/// The same with the wide registers that most processors have, and that a program for all of them may not count on: from pod to
/// pod it carries a tenth more.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "a function for some processors only can be called in no other way")]
mod wide {
    /// `None` if this processor has none.
    pub(super) fn sum(bytes: &[u8]) -> Option<u16> {
        // SAFETY: it has what the function is compiled for.
        is_x86_feature_detected!("avx2").then(|| unsafe { sum_avx2(bytes) })
    }

    #[target_feature(enable = "avx2")]
    fn sum_avx2(bytes: &[u8]) -> u16 {
        super::sum_of_words(bytes)
    }
}

// Compiled once for each kind of processor.
#[inline(always)]
fn sum_of_words(bytes: &[u8]) -> u16 {
    // In the machine's own byte order: the sum comes out swapped as a whole (RFC 1071, 2 B). Words of 32 bits are added to several
    // sums of 64, which compilers make vector instructions of and which do not overflow below 128 GiB.
    let (blocks, rest) = bytes.as_chunks::<{ 4 * LANES }>();
    let mut sums = [0_u64; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for lane in 0..LANES {
            sums[lane] += u64::from(u32::from_ne_bytes(words[lane]));
        }
    }
    let mut total: u64 = sums.into_iter().map(|sum| (sum >> 32) + (sum & 0xffff_ffff)).sum();
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
pub(crate) fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The checksum after one 16-bit word that it covers changed from `old` to `new`: RFC 1624, equation 3.
pub(crate) fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

const LANES: usize = 8;

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
            prop_assert_eq!(sum_of_words(&bytes), plain(&bytes));
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
