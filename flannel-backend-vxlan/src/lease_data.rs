//! What VXLAN nodes tell each other in their leases.

use flannel_core::{Fields, RawJson};
use flannel_netlink::state::MacAddress;

use crate::vni::Vni;

/// The data of a lease: `{"VNI":1,"VtepMAC":"0e:2a:11:22:33:44"}`.
///
/// Flannel splits this text by hand when it starts, so members, order and spelling are part of the format.
pub(crate) fn print(vni: Vni, mac: MacAddress) -> RawJson {
    RawJson::new(&format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)).expect("numbers and letters")
}

/// The Ethernet address of a node's device, or in words why there is none.
///
/// As in flannel the VNI is not compared with ours, but has to be a number of 32 bits.
pub(crate) fn parse(data: Option<&RawJson>) -> Result<MacAddress, String> {
    let data = data.ok_or("it has no VtepMAC")?;
    match parse_usual(data) {
        Some(mac) => Ok(mac),
        None => parse_any(data),
    }
}

fn parse_any(data: &RawJson) -> Result<MacAddress, String> {
    let fields = Fields::parse(data.as_str()).map_err(|error| error.to_string())?;
    fields.integer("VNI", 0..=u64::from(u32::MAX)).map_err(|error| error.to_string())?;
    let expected = "the Ethernet address of one station, such as 0e:2a:11:22:33:44";
    let unicast = |text: &str| text.parse().ok().filter(|mac: &MacAddress| mac.is_unicast());
    let mac = fields.parsed("VtepMAC", expected, unicast).map_err(|error| error.to_string())?;
    Ok(mac.ok_or("it has no VtepMAC")?)
}

/// Reads what [`print()`] and flannel write, which all peers but a few have: ten times as fast as any JSON.
fn parse_usual(data: &RawJson) -> Option<MacAddress> {
    let (vni, mac) = data.as_str().strip_prefix(r#"{"VNI":"#)?.split_once(r#","VtepMAC":""#)?;
    vni.parse::<u32>().ok()?;
    let mac: MacAddress = mac.strip_suffix(r#""}"#)?.parse().ok()?;
    mac.is_unicast().then_some(mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<MacAddress, String> {
        parse(Some(&RawJson::new(text).unwrap()))
    }

    #[test]
    fn data_prints_byte_for_byte_as_flannels() {
        // vxlanLeaseAttrs in pkg/backend/vxlan/vxlan.go at cdf76059.
        let mac = "C6-D2-32-6F-8F-44".parse().unwrap();
        let text = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
        assert_eq!(print(Vni::default(), mac).as_str(), text);
        assert_eq!(read(text), Ok(mac));
    }

    #[test]
    fn every_spelling_of_an_address_is_read() {
        let mac = "c6:d2:32:6f:8f:44".parse().unwrap();
        for text in [
            r#"{"VNI":4096,"VtepMAC":"C6-D2-32-6F-8F-44"}"#,
            r#"{"vtepmac":"c6d2.326f.8f44"}"#,
            r#"{"VtepMAC":"c6:d2:32:6f:8f:44","VNI":4294967295,"more":[]}"#,
        ] {
            assert_eq!(read(text), Ok(mac), "{text}");
        }
    }

    #[test]
    fn data_that_leads_to_no_station_is_refused_in_words() {
        assert_eq!(parse(None).unwrap_err(), "it has no VtepMAC");
        for (text, words) in [
            ("{}", "it has no VtepMAC"),
            ("[]", "not a JSON object"),
            // What a Windows node publishes first.
            (r#"{"VNI":4096,"VtepMAC":""}"#, r#"VtepMAC is """#),
            (r#"{"VtepMAC":"01:00:5e:00:00:01"}"#, "expected the Ethernet address of one station"),
            (r#"{"VtepMAC":"00:00:00:00:00:00"}"#, "expected the Ethernet address of one station"),
            (r#"{"VtepMAC":"0e:2a:11:22:33:44:55:66"}"#, "VtepMAC is"),
            (r#"{"VtepMAC":7}"#, "VtepMAC is 7"),
            (r#"{"VNI":4294967296,"VtepMAC":"c6:d2:32:6f:8f:44"}"#, "VNI is 4294967296"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(octets: [u8; 6], vni in 0..=Vni::MAX) {
            let mac = MacAddress::new(octets);
            let read = parse(Some(&print(Vni::new(vni).unwrap(), mac)));
            prop_assert_eq!(read.ok(), Some(mac).filter(|mac| mac.is_unicast()));
        }

        #[test]
        fn the_short_way_leads_where_the_long_one_does(
            vni in "(0|[1-9][0-9]{0,10}|-?[0-9.e+]{1,4})",
            mac in "([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}|[0-9a-f]{4}\\.[0-9a-f]{4}\\.[0-9a-f]{4}|[0-9a-f:\\\\u]{0,20}",
            more in "(,\"VtepMAC\":\"02:00:00:00:00:07\"|,\"vni\":-1|)",
        ) {
            let text = format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"{more}}}"#);
            if let Ok(data) = RawJson::new(&text)
                && let Some(mac) = parse_usual(&data)
            {
                prop_assert_eq!(Ok(mac), parse_any(&data));
            }
        }

        #[test]
        fn no_data_panics(text in "\\PC{0,60}", value in "\\PC{0,20}") {
            for text in [text, format!(r#"{{"VNI":{value},"VtepMAC":"{value}"}}"#)] {
                if let Ok(json) = RawJson::new(&text) {
                    let _ = parse(Some(&json));
                }
            }
        }
    }
}
