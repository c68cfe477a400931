//! Blocks of addresses as Go reads them: an address, `/`, and how many bits count. Nothing is left out.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// Reads a block.
pub(crate) fn parse(text: &str) -> Result<IpNetwork, String> {
    let invalid =
        || format!("{text:?} is not an address with a prefix length, such as 10.1.0.0/16");
    let (_, length) = text.split_once('/').ok_or_else(invalid)?;
    if length.is_empty() || !length.bytes().all(|it| it.is_ascii_digit()) {
        return Err(invalid());
    }
    text.parse().map_err(|_| invalid())
}

pub(crate) fn serialize<S: Serializer>(
    block: &IpNetwork,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    block.serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<IpNetwork, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// The same for a key that may be missing.
pub(crate) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IpNetwork>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse(&text)).transpose().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_a_prefix_length() {
        for text in ["10.1.2.3/24", "fd00::/48", "0.0.0.0/0"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "/", "10.9.9.9", "10.0.0.0/", "10.0.0.0/255.0.0.0", "10.0.0.0/33", "x/8", "::/+1"]
        {
            parse(text).unwrap_err();
        }
    }
}
