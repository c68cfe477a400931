//! The sets of nf_tables: whether what a register holds is in them.

use super::{bits::Bits, ternary::Ternary};
use crate::nftables::{Comparison, SetElement, Verdict};

/// Whether one of the elements is what a register holds.
pub(super) fn contains(held: &Bits, elements: &[SetElement]) -> Ternary {
    let each = ranges(elements).into_iter().map(|(range, _)| match range {
        Some(range) => within(held, &range),
        None => Ternary::True,
    });
    each.fold(Ternary::False, Ternary::or)
}

/// Values that an element of a set stands for.
pub(super) enum Range<'a> {
    /// From one to before another, or to the last.
    Between(&'a [u8], Option<&'a [u8]>),
    /// Several values behind each other, each with bounds.
    Concatenated,
    One(&'a [u8]),
}

/// The ranges and what they map to. Elements of sets with ranges come as beginnings and ends, in any order.
pub(super) fn ranges(elements: &[SetElement]) -> Vec<(Option<Range<'_>>, Option<&Verdict>)> {
    let has_ends = elements.iter().any(|element| element.ends_range);
    let mut sorted: Vec<_> = elements.iter().collect();
    sorted.sort_by_key(|element| (&element.key, !element.ends_range));
    let mut found = Vec::new();
    for (at, element) in sorted.iter().enumerate().filter(|(_, element)| !element.ends_range) {
        let range = element.key.as_deref().map(|key| match &element.key_end {
            Some(end) if end != key => Range::Concatenated,
            _ if has_ends => {
                let end = sorted.get(at + 1).and_then(|next| next.key.as_deref());
                Range::Between(key, end)
            }
            _ => Range::One(key),
        });
        found.push((range, element.verdict.as_ref()));
    }
    found
}

/// Whether what a register holds is in the range.
pub(super) fn within(held: &Bits, range: &Range<'_>) -> Ternary {
    match range {
        Range::Between(from, to) => {
            let above = held.compare(Comparison::GreaterOrEqual, from);
            above.and(to.map_or(Ternary::True, |to| held.compare(Comparison::Less, to)))
        }
        Range::Concatenated => Ternary::Unknown,
        Range::One(key) => held.compare(Comparison::Equal, key),
    }
}
