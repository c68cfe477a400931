//! What a number means, and how it is written for people.

/// The unit that samples are kept in, in JSON too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    BitsPerSecond,
    Bytes,
    Count,
    CpuSecondsPerGigabyte,
    /// Seconds of processor time per second.
    CpuShare,
    PerSecond,
    Ratio,
    Seconds,
}

impl Unit {
    /// Its name in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BitsPerSecond => "bit/s",
            Self::Bytes => "bytes",
            Self::Count => "count",
            Self::CpuSecondsPerGigabyte => "cpu s/GB",
            Self::CpuShare => "cpu s/s",
            Self::PerSecond => "1/s",
            Self::Ratio => "ratio",
            Self::Seconds => "s",
        }
    }

    /// `value` for people: three digits, and a prefix that fits its size.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::BitsPerSecond => format!("{} Gbit/s", digits(value / 1e9)),
            Self::Bytes if value >= 1e5 => format!("{} MB", digits(value / 1e6)),
            Self::Bytes => format!("{} kB", digits(value / 1e3)),
            Self::Count => digits_of_count(value),
            Self::CpuSecondsPerGigabyte => digits(value),
            Self::CpuShare => format!("{} ms/s", digits(value * 1e3)),
            Self::PerSecond if value >= 10_000.0 => format!("{} k/s", digits(value / 1e3)),
            Self::PerSecond => format!("{} /s", digits(value)),
            Self::Ratio => format!("{value:.2}"),
            Self::Seconds if value == 0.0 => "0 ms".into(),
            Self::Seconds if value.abs() >= 1.0 => format!("{} s", digits(value)),
            Self::Seconds if value.abs() >= 1e-3 => format!("{} ms", digits(value * 1e3)),
            Self::Seconds => format!("{} µs", digits(value * 1e6)),
        }
    }
}

/// Three significant digits; whole numbers from 100 on.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        small if small < 0.1 => format!("{value:.3}"),
        small if small < 10.0 => format!("{value:.2}"),
        small if small < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A count is whole, its median may lie in between.
fn digits_of_count(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_gets_the_prefix_that_fits() {
        for (unit, value, text) in [
            (Unit::BitsPerSecond, 38.44e9, "38.4 Gbit/s"),
            (Unit::Bytes, 1_432.0, "1.43 kB"),
            (Unit::Bytes, 5_430_000.0, "5.43 MB"),
            (Unit::Count, 3.0, "3"),
            (Unit::Count, 3.5, "3.5"),
            (Unit::CpuSecondsPerGigabyte, 0.372, "0.37"),
            (Unit::CpuShare, 0.000_05, "0.050 ms/s"),
            (Unit::CpuShare, 0.15, "150 ms/s"),
            (Unit::PerSecond, 340_000.0, "340 k/s"),
            (Unit::PerSecond, 2.5, "2.50 /s"),
            (Unit::Ratio, 1.049, "1.05"),
            (Unit::Seconds, 0.0, "0 ms"),
            (Unit::Seconds, 0.000_009_1, "9.10 µs"),
            (Unit::Seconds, 0.083, "83.0 ms"),
            (Unit::Seconds, 117.2, "117 s"),
        ] {
            assert_eq!(unit.show(value), text);
        }
    }

    proptest! {
        #[test]
        fn no_time_is_shown_as_nothing(exponent in -9.0..12.0f64) {
            let shown = Unit::Seconds.show(10_f64.powf(exponent));
            prop_assert!(shown.contains(|c: char| ('1'..='9').contains(&c)), "{}", shown);
        }
    }
}
