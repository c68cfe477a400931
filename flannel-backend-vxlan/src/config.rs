//! The backend's options.

use flannel_backend::read_mtu;
use flannel_core::{FieldError, Fields};
use flannel_netlink::iface::Interface;

use crate::{family::Family, vni::Vni};

/// What the network's configuration says about VXLAN.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    pub(crate) vni: Vni,
    /// The UDP port; `None` leaves it as it is, and for a new device to the kernel, which takes 8472.
    pub(crate) port: Option<u16>,
    /// The largest packet of the underlay, bytes; `None` takes the uplink's.
    pub(crate) mtu: Option<u32>,
    pub(crate) gbp: bool,
    pub(crate) learning: bool,
    pub(crate) direct_routing: bool,
    pub(crate) families: Vec<Family>,
}

impl Settings {
    /// Reads the options for a network with these families. Defaults are flannel's.
    pub(crate) fn read(options: &Fields, families: Vec<Family>) -> Result<Self, FieldError> {
        let smallest = families.iter().map(|family| family.smallest_mtu() + family.overhead());
        // The ranges make the conversions lossless.
        let vni = options.integer("VNI", 0..=u64::from(Vni::MAX))?;
        let port = options.integer("Port", 0..=u64::from(u16::MAX))?;
        Ok(Self {
            vni: vni.and_then(|vni| Vni::new(vni as u32)).unwrap_or_default(),
            port: port.map(|port| port as u16).filter(|port| *port != 0),
            mtu: read_mtu(options, smallest.max().unwrap_or_default())?,
            gbp: options.boolean("GBP", false)?,
            learning: options.boolean("Learning", false)?,
            direct_routing: options.boolean("DirectRouting", false)?,
            families,
        })
    }

    /// These settings with what of `wanted` a running network can take up: MTU, Learning and DirectRouting.
    ///
    /// # Errors
    ///
    /// The keys of what it cannot: a device has those for its life, and peers would not be reached through another one.
    pub(crate) fn adopt(&self, wanted: Self) -> Result<Self, &'static str> {
        let Self { mtu, learning, direct_routing, .. } = wanted;
        let adopted = Self { mtu, learning, direct_routing, ..self.clone() };
        if adopted == wanted { Ok(adopted) } else { Err("VNI, Port and GBP") }
    }

    /// The MTU of the device of `family`, bytes.
    pub(crate) fn device_mtu(&self, family: Family, uplink: &Interface) -> u32 {
        self.mtu.unwrap_or(uplink.mtu).saturating_sub(family.overhead())
    }

    /// What a pod may send in every family that the uplink can carry, bytes.
    pub(crate) fn pod_mtu(&self, uplink: &Interface) -> u32 {
        let mtus = self.families.iter().map(|family| (family, self.device_mtu(*family, uplink)));
        // A family that cannot be served does not count.
        let usable = mtus.filter(|(family, mtu)| *mtu >= family.smallest_mtu());
        usable.map(|(_, mtu)| mtu).min().unwrap_or(uplink.mtu)
    }
}

/// `Name` and `MacPrefix` are for Windows nodes.
pub(crate) const KNOWN: [&str; 9] =
    ["Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting", "Name", "MacPrefix"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Settings, String> {
        let options = Fields::parse(json).unwrap();
        Settings::read(&options, vec![Family::V4]).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let defaults = Settings {
            vni: Vni::new(1).unwrap(),
            port: None,
            mtu: None,
            gbp: false,
            learning: false,
            direct_routing: false,
            families: vec![Family::V4],
        };
        assert_eq!(read("{}"), Ok(defaults.clone()));
        assert_eq!(read(r#"{"Type":"vxlan","Port":0}"#), Ok(defaults));
    }

    #[test]
    fn keys_are_read_in_any_case() {
        let json = r#"{"vni":4096,"PORT":4789,"Mtu":9000,"gbp":true,"LEARNING":true,"Directrouting":true}"#;
        let settings = read(json).unwrap();
        assert_eq!(
            (settings.vni.number(), settings.port, settings.mtu),
            (4096, Some(4789), Some(9000))
        );
        assert!(settings.gbp && settings.learning && settings.direct_routing);
    }

    #[test]
    fn what_is_invalid_is_named_with_what_would_be_valid() {
        for (json, words) in [
            (r#"{"VNI":16777216}"#, "VNI is 16777216, expected a whole number from 0 to 16777215"),
            (r#"{"VNI":"1"}"#, "VNI is \"1\", expected a whole number from 0 to 16777215"),
            (r#"{"Port":65536}"#, "Port is 65536, expected a whole number from 0 to 65535"),
            (r#"{"MTU":625}"#, "MTU is 625, expected a whole number from 626 to 65535"),
            (r#"{"DirectRouting":1}"#, "DirectRouting is 1, expected true or false"),
        ] {
            assert_eq!(read(json).unwrap_err(), words);
        }
        let options = Fields::parse(r#"{"MTU":1349}"#).unwrap();
        let dual = Settings::read(&options, Family::ALL.to_vec()).unwrap_err();
        assert_eq!(dual.to_string(), "MTU is 1349, expected a whole number from 1350 to 65535");
    }

    #[test]
    fn a_running_network_adopts_all_that_its_devices_need_not_be_made_anew_for() {
        let running = read("{}").unwrap();
        let adopt = |json| running.adopt(read(json).unwrap());
        let json = r#"{"MTU":1400,"Learning":true,"DirectRouting":true}"#;
        assert_eq!(adopt(json), Ok(read(json).unwrap()));
        for json in [r#"{"VNI":2}"#, r#"{"Port":4789,"MTU":1400}"#, r#"{"GBP":true}"#] {
            assert_eq!(adopt(json), Err("VNI, Port and GBP"), "{json}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_in_range(vni: i64, port: i64, mtu: i64) {
            let options = format!(r#"{{"VNI":{vni},"Port":{port},"MTU":{mtu}}}"#);
            if let Ok(settings) = read(&options) {
                prop_assert_eq!(i64::from(settings.vni.number()), vni);
                prop_assert_eq!(settings.port.map_or(0, i64::from), port);
                prop_assert_eq!(settings.mtu.map(i64::from), Some(mtu));
                prop_assert!(mtu >= 626);
            }
        }
    }
}
