//! The backend's options.

use std::path::PathBuf;

use flannel_backend::{read_mtu, smallest_mtu};
use flannel_core::{Family, FieldError, Fields};
use flannel_netlink::{iface::Interface, state::IpFamily, wireguard::SecretKey};

use crate::NAMES;

/// What the network's configuration says about WireGuard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Settings {
    pub(crate) instance: Instance,
    pub(crate) listen_port: u16,
    pub(crate) listen_port_v6: u16,
    /// The largest packet of the underlay, bytes; `None` takes the uplink's.
    pub(crate) mtu: Option<u32>,
    pub(crate) preshared_key: Option<SecretKey>,
    /// Seconds, 0 for never.
    pub(crate) keepalive: u16,
    pub(crate) mode: Mode,
    pub(crate) engine: EngineChoice,
    /// The families of the network.
    pub(crate) families: Vec<Family>,
}

/// The backend has two names, under which it does the same by other devices, ports and keys. So a network gets new keys when it moves
/// from one name to the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Instance {
    /// flannel's.
    First,
    Second,
}

/// How the packets of pods are carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// A device for each family, over the same family.
    Separate,
    /// One device, over whichever family suits the peer.
    Auto,
    /// One device, over this family.
    Over(Family),
}

/// What is to encrypt packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EngineChoice {
    /// The kernel if it can, else threads of this process.
    Auto,
    Kernel,
    Userspace,
}

/// A device, with the pods' families that it carries.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TunnelSpec {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    /// The option that says which port.
    pub(crate) port_option: &'static str,
    pub(crate) families: Vec<Family>,
}

impl Instance {
    fn named(kind: &str) -> Self {
        if kind.eq_ignore_ascii_case(Self::Second.name()) { Self::Second } else { Self::First }
    }

    /// As in leases and in the network's configuration.
    pub(crate) const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// The names of its devices; flannel's have no number.
    pub(crate) const fn devices(self) -> [&'static str; 2] {
        match self {
            Self::First => ["flannel-wg", "flannel-wg-v6"],
            Self::Second => ["flannel-wg2", "flannel-wg2-v6"],
        }
    }

    /// The file of its private key, where that of the first one is in `first`.
    pub(crate) fn key_file(self, first: PathBuf) -> PathBuf {
        match self {
            Self::First => first,
            Self::Second => {
                let mut name = first.into_os_string();
                name.push("-2");
                name.into()
            }
        }
    }

    /// How far its ports are above those that are configured: both instances have two, and are there at the same time.
    const fn ports_above(self) -> u16 {
        match self {
            Self::First => 0,
            Self::Second => 2,
        }
    }
}

impl Settings {
    /// Reads the options for a network with these families. Defaults are flannel's.
    pub(crate) fn read(options: &Fields, families: Vec<Family>) -> Result<Self, FieldError> {
        let keepalive = options.integer("PersistentKeepaliveInterval", 0..=u64::from(u16::MAX))?;
        let mode = |text: &str| {
            let over = |family| families.contains(&family).then_some(Mode::Over(family));
            match text {
                "separate" => Some(Mode::Separate),
                "auto" => Some(Mode::Auto),
                "ipv4" => over(Family::Ipv4),
                "ipv6" => over(Family::Ipv6),
                _ => None,
            }
        };
        let engine = |text: &str| match text {
            "auto" => Some(EngineChoice::Auto),
            KERNEL => Some(EngineChoice::Kernel),
            USERSPACE => Some(EngineChoice::Userspace),
            _ => None,
        };
        let instance = Instance::named(options.text("Type")?.as_deref().unwrap_or_default());
        let above = instance.ports_above();
        let ports = 1..=u64::from(u16::MAX - above);
        let expected = "separate, auto, or ipv4 or ipv6 in a network of that family";
        let settings = Self {
            instance,
            // The range makes the conversions lossless.
            listen_port: options.integer("ListenPort", ports.clone())?.unwrap_or(51820) as u16
                + above,
            listen_port_v6: options.integer("ListenPortV6", ports)?.unwrap_or(51821) as u16 + above,
            mtu: read_mtu(options, smallest(&families) + OVERHEAD)?,
            preshared_key: read_psk(options)?,
            keepalive: keepalive.unwrap_or_default() as u16,
            mode: options.parsed("Mode", expected, mode)?.unwrap_or(Mode::Separate),
            engine: options
                .parsed("Engine", "auto, kernel or userspace", engine)?
                .unwrap_or(EngineChoice::Auto),
            families,
        };
        if let [one, other] = &*settings.tunnels()
            && one.port == other.port
        {
            let expected = "another port than ListenPort: each device has its own".into();
            let (key, value) = ("ListenPortV6".into(), (other.port - above).to_string());
            return Err(FieldError::Invalid { key, value, expected });
        }
        Ok(settings)
    }

    /// The devices to create.
    pub(crate) fn tunnels(&self) -> Vec<TunnelSpec> {
        let [name, name_v6] = self.instance.devices();
        let first = |families| TunnelSpec {
            name,
            port: self.listen_port,
            port_option: "ListenPort",
            families,
        };
        let second = |families| TunnelSpec {
            name: name_v6,
            port: self.listen_port_v6,
            port_option: "ListenPortV6",
            families,
        };
        if self.mode != Mode::Separate {
            return vec![first(self.families.clone())];
        }
        let of = |family: &Family| match family {
            Family::Ipv4 => first(vec![*family]),
            Family::Ipv6 => second(vec![*family]),
        };
        self.families.iter().map(of).collect()
    }

    /// These settings with what a running network can adopt from `wanted`: MTU and PersistentKeepaliveInterval.
    ///
    /// # Errors
    ///
    /// The keys of what it cannot: peers would not be reached until all nodes have adopted it.
    pub(crate) fn adopt(&self, wanted: Self) -> Result<Self, &'static str> {
        let adopted = Self { mtu: wanted.mtu, keepalive: wanted.keepalive, ..self.clone() };
        if adopted == wanted {
            Ok(adopted)
        } else {
            Err("Engine, ListenPort, ListenPortV6, Mode and PSK")
        }
    }

    /// What a pod may send, bytes.
    pub(crate) fn device_mtu(&self, uplink: &Interface) -> u32 {
        self.mtu.unwrap_or(uplink.mtu).saturating_sub(OVERHEAD)
    }

    /// The smallest MTU that a device for these families is of use with, bytes.
    pub(crate) fn smallest_mtu(&self) -> u32 {
        smallest(&self.families)
    }
}

fn smallest(families: &[Family]) -> u32 {
    families.iter().map(|family| smallest_mtu(ip(*family))).max().unwrap_or_default()
}

pub(crate) const fn ip(family: Family) -> IpFamily {
    match family {
        Family::Ipv4 => IpFamily::V4,
        Family::Ipv6 => IpFamily::V6,
    }
}

/// As with flannel, an empty key is none. The error does not show what the option holds.
fn read_psk(options: &Fields) -> Result<Option<SecretKey>, FieldError> {
    let hidden = |_| FieldError::Invalid {
        key: "PSK".into(),
        value: "not a key".into(),
        expected: "32 bytes in base64, as wg genpsk prints them".into(),
    };
    let read = |text: &str| match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    };
    options.parsed("PSK", "", read).map(Option::flatten).map_err(hidden)
}

/// What WireGuard adds to a packet over IPv6, bytes: an IP header of 40, a UDP header of 8, and 32 of its own. Over IPv4 it is 20 less;
/// flannel subtracts the same for both.
pub(crate) const OVERHEAD: u32 = 80;

/// All options.
pub(crate) const KNOWN: [&str; 8] = [
    "Type",
    "Engine",
    "ListenPort",
    "ListenPortV6",
    "MTU",
    "Mode",
    "PSK",
    "PersistentKeepaliveInterval",
];

// The names of engines.
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const USERSPACE: &str = "userspace";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::DEVICES;

    const DUAL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    fn read(json: &str, families: &[Family]) -> Result<Settings, String> {
        let options = Fields::parse(json).unwrap();
        Settings::read(&options, families.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        let settings = read(r#"{"Type":"wireguard"}"#, &DUAL).unwrap();
        let Settings { mtu, preshared_key, keepalive, mode, .. } = settings;
        assert_eq!((mtu, preshared_key, keepalive, mode), (None, None, 0, Mode::Separate));
        let tunnels = |families| {
            let tunnels = read("{}", families).unwrap().tunnels();
            tunnels.into_iter().map(|it| (it.name, it.port, it.families)).collect::<Vec<_>>()
        };
        let v4 = ("flannel-wg", 51820, vec![Family::Ipv4]);
        let v6 = ("flannel-wg-v6", 51821, vec![Family::Ipv6]);
        assert_eq!(tunnels(&DUAL), [v4.clone(), v6.clone()]);
        assert_eq!(tunnels(&DUAL[1..]), [v6]);
        assert_eq!(tunnels(&DUAL[..1]), [v4]);
    }

    #[test]
    fn the_second_instance_shares_neither_device_nor_port_with_the_first() {
        for options in ["", r#","ListenPort":7,"ListenPortV6":8"#] {
            let of = |kind| {
                let json = format!(r#"{{"Type":"{kind}"{options}}}"#);
                let settings = read(&json, &DUAL).unwrap();
                (settings.instance.name(), settings.tunnels())
            };
            let ((_, first), (name, second)) = (of("wireguard"), of("WireGuard-2"));
            assert_eq!(name, "wireguard-2");
            for tunnel in &second {
                let is_apart = |it: &TunnelSpec| it.name != tunnel.name && it.port != tunnel.port;
                assert!(first.iter().all(is_apart), "{tunnel:?}");
                let beginning = DEVICES.strip_suffix('+').unwrap();
                assert!(tunnel.name.starts_with(beginning) && tunnel.name.len() < 16);
            }
        }
        let error = read(r#"{"Type":"wireguard-2","ListenPort":65534}"#, &DUAL).unwrap_err();
        assert!(error.contains("from 1 to 65533"), "{error}");
    }

    #[test]
    fn all_modes_but_separate_have_one_device_on_listen_port() {
        for mode in ["auto", "ipv4", "ipv6"] {
            let settings = read(&format!(r#"{{"mode":"{mode}","listenport":7}}"#), &DUAL).unwrap();
            let [tunnel] = &*settings.tunnels() else { panic!("{mode}") };
            assert_eq!((tunnel.name, tunnel.port), ("flannel-wg", 7), "{mode}");
            assert_eq!(tunnel.families, DUAL, "{mode}");
        }
    }

    #[test]
    fn an_invalid_option_is_named_with_what_would_be_valid() {
        let psk = r#""BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=""#;
        let read_psk = |psk| read(&format!(r#"{{"PSK":{psk}}}"#), &DUAL).unwrap().preshared_key;
        assert!(read_psk(psk).is_some());
        assert_eq!(read_psk(r#""""#), None);
        for (json, families, words) in [
            (r#"{"ListenPort":0}"#, &DUAL[..], "ListenPort is 0, expected a whole number from 1"),
            (r#"{"ListenPortV6":51820}"#, &DUAL, "ListenPortV6 is 51820, expected another port"),
            (r#"{"Engine":"go"}"#, &DUAL, "Engine is \"go\", expected auto, kernel or userspace"),
            (r#"{"Mode":"Auto"}"#, &DUAL, "Mode is \"Auto\", expected separate, auto"),
            (r#"{"Mode":"ipv6"}"#, &DUAL[..1], "Mode is \"ipv6\", expected separate, auto"),
            (r#"{"MTU":1359}"#, &DUAL, "MTU is 1359, expected a whole number from 1360 to"),
            (r#"{"PersistentKeepaliveInterval":65536}"#, &DUAL, "from 0 to 65535"),
        ] {
            let error = read(json, families).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
        assert!(read(r#"{"ListenPortV6":51820}"#, &DUAL[..1]).is_ok(), "there is one device");
        assert!(read(r#"{"ListenPortV6":51820,"Mode":"auto"}"#, &DUAL).is_ok(), "the same");
    }

    #[test]
    fn an_invalid_psk_is_not_shown() {
        let error = read(r#"{"PSK":"Zm9vYmFyc2VjcmV0"}"#, &DUAL).unwrap_err();
        assert_eq!(
            error,
            "PSK is not a key, expected 32 bytes in base64, as wg genpsk prints them"
        );
    }

    #[test]
    fn a_running_network_adopts_what_concerns_itself_alone() {
        let running = read("{}", &DUAL).unwrap();
        let adopt = |json| running.adopt(read(json, &DUAL).unwrap());
        let json = r#"{"MTU":1400,"PersistentKeepaliveInterval":25}"#;
        assert_eq!(adopt(json), Ok(read(json, &DUAL).unwrap()));
        for json in
            [r#"{"ListenPort":1}"#, r#"{"Mode":"auto","MTU":1400}"#, r#"{"Engine":"kernel"}"#]
        {
            assert_eq!(
                adopt(json),
                Err("Engine, ListenPort, ListenPortV6, Mode and PSK"),
                "{json}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_in_range(port: i64, keepalive: i64, mtu: i64, mode in "\\PC{0,8}") {
            let mode = mode.replace(['"', '\\'], "");
            let json = format!(
                r#"{{"ListenPort":{port},"PersistentKeepaliveInterval":{keepalive},"MTU":{mtu},"Mode":"{mode}"}}"#
            );
            if let Ok(settings) = read(&json, &DUAL) {
                prop_assert_eq!(i64::from(settings.listen_port), port);
                prop_assert_eq!(i64::from(settings.keepalive), keepalive);
                prop_assert!(mtu >= 1360);
            }
        }
    }
}
