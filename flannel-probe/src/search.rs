//! The largest size that passes, by asking for several at a time.

/// What is known: `low` passes, `high` does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Search {
    pub(crate) low: u32,
    pub(crate) high: u32,
}

impl Search {
    /// The sizes to ask for next; none if `low` is the answer.
    pub(crate) fn sizes(self) -> Vec<u32> {
        let between = self.high.saturating_sub(self.low).saturating_sub(1);
        let count = between.min(AT_ONCE);
        (1..=count).map(|n| self.low + n * (between + 1) / (count + 1)).collect()
    }

    /// What is known after each of these sizes has passed or not. One that passes says that all smaller ones would.
    pub(crate) fn learn(self, outcomes: &[(u32, bool)]) -> Self {
        let passed = outcomes.iter().filter(|(_, passed)| *passed).map(|(size, _)| *size);
        let low = passed.chain([self.low]).max().unwrap_or(self.low);
        let lost = outcomes.iter().filter(|(size, _)| *size > low).map(|(size, _)| *size);
        Self { low, high: lost.chain([self.high]).min().unwrap_or(self.high) }
    }
}

/// How many sizes are tried at once: four steps then find any size up to 6,500 bytes, and five all others.
const AT_ONCE: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_size_is_found_in_a_few_steps(low in 0_u32..9000, span in 1_u32..60_000, limit: prop::sample::Index) {
            let high = low + span;
            let limit = low + limit.index(span as usize) as u32;
            let (mut search, mut steps) = (Search { low, high }, 0);
            loop {
                let sizes = search.sizes();
                if sizes.is_empty() {
                    break;
                }
                prop_assert!(sizes.iter().all(|size| (search.low + 1..search.high).contains(size)));
                prop_assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]));
                let outcomes: Vec<_> = sizes.into_iter().map(|size| (size, size <= limit)).collect();
                search = search.learn(&outcomes);
                steps += 1;
            }
            prop_assert_eq!(search.low, limit);
            prop_assert!(steps <= 5 + usize::from(span > 59_048), "{} steps", steps);
        }

        #[test]
        fn whatever_comes_back_it_ends(outcomes in prop::collection::vec(any::<bool>(), 200)) {
            let mut outcomes = outcomes.into_iter();
            let mut search = Search { low: 52, high: 65_535 };
            for _ in 0..20 {
                let sizes = search.sizes();
                if sizes.is_empty() {
                    return Ok(());
                }
                let seen: Vec<_> = sizes.into_iter().map(|size| (size, outcomes.next().unwrap_or(false))).collect();
                let next = search.learn(&seen);
                prop_assert!(next.high - next.low < search.high - search.low);
                search = next;
            }
            prop_assert!(false, "it goes on");
        }
    }
}
