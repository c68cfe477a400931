use std::{fmt, str::FromStr};

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address with these octets.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets in wire order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether it names one station: neither a group nor all zero.
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Takes `01:23:45:67:89:ab`, `01-23-45-67-89-AB` and `0123.4567.89ab`.
impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let digits = match text.as_bytes().get(2) {
            Some(b':') => joined(text, ':', 2),
            Some(b'-') => joined(text, '-', 2),
            _ => joined(text, '.', 4),
        };
        let value = digits
            .filter(|digits| digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(&digits, 16).ok())
            .ok_or_else(|| ParseMacError { text: text.chars().take(40).collect() })?;
        let [_, _, octets @ ..] = value.to_be_bytes();
        Ok(Self(octets))
    }
}

/// The text is not an Ethernet address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is not an Ethernet address such as 0e:2a:11:22:33:44")]
pub struct ParseMacError {
    text: String,
}

fn joined(text: &str, separator: char, group: usize) -> Option<String> {
    text.split(separator).all(|part| part.len() == group).then(|| text.replace(separator, ""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_is_taken() {
        let mac = MacAddress::new([0x0e, 0x2a, 0x11, 0x22, 0x33, 0xab]);
        for text in ["0e:2a:11:22:33:ab", "0E-2A-11-22-33-AB", "0e2a.1122.33ab"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
    }

    #[test]
    fn other_text_is_refused_and_named() {
        for text in
            ["", "0e:2a:11:22:33", "0e:2a:11:22:33:4", "0e:2a-11:22:33:44", "+e:2a:11:22:33:44"]
        {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(octets: [u8; 6]) {
            let mac = MacAddress::new(octets);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        }

        #[test]
        fn any_text_is_read_without_panic(text in ".{0,24}") {
            let _ = text.parse::<MacAddress>();
        }
    }
}
