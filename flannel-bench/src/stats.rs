//! What is said about a set of samples.

/// The middle and the ends of a set of samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// `None` without samples.
pub(crate) fn summary(samples: &[f64]) -> Option<Summary> {
    let sorted = sorted(samples);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        0 => f64::midpoint(sorted[half - 1], sorted[half]),
        _ => sorted[half],
    };
    Some(Summary { median, min, max })
}

/// The smallest sample that is not below `percent` of all of them (nearest rank); `None` without samples, and above the median where
/// there are so few that it is the largest: 99 needs 100.
pub(crate) fn percentile(samples: &[f64], percent: f64) -> Option<f64> {
    let sorted = sorted(samples);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    let is_largest = percent > 50.0 && percent < 100.0 && rank == sorted.len();
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().filter(|_| !is_largest)
}

/// Each sample against the one of the same run in `reference`; runs that only one of them has are left out.
pub(crate) fn ratios(samples: &[f64], reference: &[f64]) -> Vec<f64> {
    let pairs = samples.iter().zip(reference).filter(|(_, reference)| **reference > 0.0);
    pairs.map(|(sample, reference)| sample / reference).collect()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let odd = summary(&[9.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 9.0));
        assert_eq!(summary(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 50.0), Some(50.0));
        assert_eq!(percentile(&hundred, 99.0), Some(99.0));
        assert_eq!(percentile(&hundred, 100.0), Some(100.0));
        assert_eq!(percentile(&hundred, 0.0), Some(1.0));
        assert_eq!(percentile(&hundred[..99], 99.0), None, "it would be the largest");
        assert_eq!(percentile(&[7.0], 50.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn ratios_pair_the_runs() {
        assert_eq!(ratios(&[2.0, 9.0, 5.0], &[1.0, 3.0]), [2.0, 3.0]);
        assert_eq!(ratios(&[2.0, 9.0], &[0.0, 3.0]), [3.0], "nothing is measured against nothing");
    }

    proptest! {
        #[test]
        fn everything_lies_between_the_ends(samples in prop::collection::vec(-1e9..1e9, 1..50), percent in 0.0..100.0) {
            let Summary { median, min, max } = summary(&samples).unwrap();
            prop_assert!(min <= median && median <= max);
            let Some(percentile) = percentile(&samples, percent) else {
                return Ok(());
            };
            prop_assert!(samples.contains(&percentile));
            let below = samples.iter().filter(|sample| **sample <= percentile).count();
            prop_assert!(below as f64 >= percent / 100.0 * samples.len() as f64);
        }
    }
}
