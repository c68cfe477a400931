//! What WireGuard nodes tell each other in their leases.

use flannel_core::{Fields, RawJson};
use flannel_netlink::wireguard::PublicKey;

/// The data of a lease: `{"PublicKey":"...","Port":51820}`.
pub(crate) fn print(key: PublicKey, port: u16) -> RawJson {
    RawJson::new(&format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#)).expect("letters and numbers")
}

/// The public key of a node, and its port if it says one: flannel before v0.26.6 does not. Or in words why there is none.
pub(crate) fn parse(data: Option<&RawJson>) -> Result<(PublicKey, Option<u16>), String> {
    let data = data.ok_or("it has no PublicKey")?;
    let fields = Fields::parse(data.as_str()).map_err(|error| error.to_string())?;
    let expected = "a public key, 32 bytes in base64";
    // The kernel takes zeros for no key.
    let usable = |text: &str| text.parse().ok().filter(|key| *key != PublicKey::new([0; 32]));
    let key = fields.parsed("PublicKey", expected, usable).map_err(|error| error.to_string())?;
    let port =
        fields.integer("Port", 0..=u64::from(u16::MAX)).map_err(|error| error.to_string())?;
    // The range makes the conversion lossless.
    let port = port.map(|port| port as u16).filter(|port| *port != 0);
    Ok((key.ok_or("it has no PublicKey")?, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<(PublicKey, Option<u16>), String> {
        parse(Some(&RawJson::new(text).unwrap()))
    }

    #[test]
    fn data_prints_byte_for_byte_as_flannels() {
        // wireguardLeaseAttrs in pkg/backend/wireguard/wireguard.go at cdf76059.
        let text = r#"{"PublicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","Port":51820}"#;
        let key = PublicKey::new([7; 32]);
        assert_eq!(print(key, 51820).as_str(), text);
        assert_eq!(read(text), Ok((key, Some(51820))));
        // flannel before v0.26.6, and one that did not set it.
        let old = text.replace(r#","Port":51820"#, "");
        assert_eq!(read(&old), Ok((key, None)));
        assert_eq!(read(&text.replace("51820", "0")), Ok((key, None)));
    }

    #[test]
    fn data_without_a_key_is_refused_in_words() {
        assert_eq!(parse(None).unwrap_err(), "it has no PublicKey");
        for (text, words) in [
            ("{}", "it has no PublicKey"),
            ("[]", "not a JSON object"),
            (r#"{"PublicKey":"x"}"#, "expected a public key"),
            (
                r#"{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
                "expected a public key",
            ),
            (
                r#"{"PublicKey":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","Port":65536}"#,
                "Port is 65536",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(bytes: [u8; 32], port in 1_u16..) {
            let key = PublicKey::new(bytes);
            prop_assert_eq!(parse(Some(&print(key, port))).ok(), Some((key, Some(port))));
        }

        #[test]
        fn no_data_panics(text in "\\PC{0,60}", value in "\\PC{0,20}") {
            for text in [text, format!(r#"{{"PublicKey":{value},"Port":{value}}}"#)] {
                if let Ok(json) = RawJson::new(&text) {
                    let _ = parse(Some(&json));
                }
            }
        }
    }
}
