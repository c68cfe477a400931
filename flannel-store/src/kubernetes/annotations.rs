//! flannel's annotations of nodes, as pkg/subnet/kube at v0.28.10 reads and writes them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use flannel_core::{LeaseAttrs, RawJson};

/// The annotations' names: all begin alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct AnnotationNames {
    prefix: String,
}

/// A text that annotations cannot begin with.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{prefix:?} is no prefix of annotations, expected one such as flannel.alpha.coreos.com or example.com/flannel: a domain \
     name, and perhaps a slash and a word, in lower case"
)]
pub struct InvalidAnnotationPrefix {
    prefix: String,
}

/// What is in a node's annotations.
pub(crate) type Present<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

impl AnnotationNames {
    pub(crate) fn new(prefix: &str) -> Result<Self, InvalidAnnotationPrefix> {
        // Mirrors newAnnotations in annotations.go, whose pattern is open at its start.
        let invalid = || InvalidAnnotationPrefix { prefix: prefix.into() };
        let mut full = prefix.to_owned();
        if !full.contains('/') {
            full.push('/');
        }
        if !full.ends_with(['/', '-']) {
            full.push('-');
        }
        let (domain, word) = full.split_once('/').ok_or_else(invalid)?;
        let is_word = |text: &str| {
            let fits = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte)
            };
            !text.is_empty() && text.bytes().all(fits)
        };
        let is_domain = domain.contains('.') && domain.split('.').all(is_word);
        if !is_domain || !(word.is_empty() || is_word(word)) {
            return Err(invalid());
        }
        Ok(Self { prefix: full })
    }

    pub(crate) fn get<'a>(&self, present: &'a Present<'_>, suffix: &str) -> Option<&'a str> {
        present.get(&*self.name(suffix)).map(|value| &**value)
    }

    pub(crate) fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    /// The annotations that have to be written so that `present` says what `attrs` do; empty if it does.
    pub(crate) fn missing(
        &self,
        attrs: &LeaseAttrs,
        present: &Present<'_>,
    ) -> BTreeMap<String, String> {
        let wanted = self.wanted(attrs, present).into_iter();
        wanted.filter(|(name, value)| present.get(&**name).is_none_or(|it| it != value)).collect()
    }

    /// All that say what `attrs` do, as AcquireLease in kube.go chooses them. An operator's other address is published in the place
    /// of the node's own.
    fn wanted(&self, attrs: &LeaseAttrs, present: &Present<'_>) -> BTreeMap<String, String> {
        let mut wanted = BTreeMap::new();
        let mut set = |suffix: &str, value: String| drop(wanted.insert(self.name(suffix), value));
        let json = |data: &Option<RawJson>| {
            data.as_ref().map_or_else(|| "null".to_owned(), ToString::to_string)
        };
        let (overwrite, overwrite_v6) = self.overwrites(present);
        set(MANAGED, "true".into());
        set(BACKEND_TYPE, attrs.backend_type.clone().into_owned());
        if attrs.backend_type != "vxlan" || attrs.backend_data.is_some() {
            set(BACKEND_DATA, json(&attrs.backend_data));
            let published = overwrite.or(attrs.public_ip).unwrap_or(Ipv4Addr::UNSPECIFIED);
            set(PUBLIC_IP, published.to_string());
        }
        let has_ipv6 = match &*attrs.backend_type {
            "vxlan" => attrs.backend_v6_data.is_some(),
            "wireguard" | "wireguard-2" => {
                attrs.backend_v6_data.is_some() && attrs.public_ipv6.is_some()
            }
            _ => attrs.public_ipv6.is_some(),
        };
        if has_ipv6 {
            set(BACKEND_V6_DATA, json(&attrs.backend_v6_data));
            let published = overwrite_v6.or(attrs.public_ipv6).unwrap_or(Ipv6Addr::UNSPECIFIED);
            set(PUBLIC_IPV6, published.to_string());
        } else if attrs.public_ipv6.is_none() && !attrs.backend_type.starts_with("wireguard") {
            // An address that the node had and has no more. It cannot go: without it flanneld leaves out the whole node. And flanneld's
            // wireguard ends by one that is unspecified, and needs none to see that a peer is silent.
            let before = self.get(present, PUBLIC_IPV6).filter(|it| !it.is_empty());
            if before.is_some() {
                set(PUBLIC_IPV6, Ipv6Addr::UNSPECIFIED.to_string());
            }
        }
        let has_second = self.get(present, SECOND_BACKEND).is_some_and(|text| !text.is_empty());
        match &attrs.second {
            Some(second) => set(SECOND_BACKEND, second.to_string()),
            // What is empty is not there.
            None if has_second => set(SECOND_BACKEND, String::new()),
            None => {}
        }
        wanted
    }

    /// What a node says about itself; `None` if it is none of flannel's. What cannot be read is not there.
    pub(crate) fn read(&self, present: &Present<'_>) -> Option<LeaseAttrs> {
        if self.get(present, MANAGED) != Some("true") {
            return None;
        }
        let data = |suffix: &str| {
            let text = self.get(present, suffix).filter(|text| *text != "null")?;
            RawJson::new(text).ok()
        };
        let kind = self.get(present, BACKEND_TYPE).unwrap_or_default();
        let second = self.get(present, SECOND_BACKEND).and_then(|text| text.parse().ok());
        let public_ip: Option<Ipv4Addr> =
            self.get(present, PUBLIC_IP).and_then(|it| it.parse().ok());
        let public_ipv6: Option<Ipv6Addr> =
            self.get(present, PUBLIC_IPV6).and_then(|it| it.parse().ok());
        Some(LeaseAttrs {
            public_ip: public_ip.filter(|it| !it.is_unspecified()),
            public_ipv6: public_ipv6.filter(|it| !it.is_unspecified()),
            backend_type: known(kind),
            backend_data: data(BACKEND_DATA),
            backend_v6_data: data(BACKEND_V6_DATA),
            second: second.map(Box::new),
        })
    }

    /// What an operator wants to be published instead of the node's own addresses and is none, with the annotation's name.
    pub(crate) fn unusable_overwrites(&self, present: &Present<'_>) -> Vec<(String, String)> {
        let unusable = |suffix: &str, is_address: fn(&str) -> bool| {
            let text = self.get(present, suffix)?;
            (!text.is_empty() && !is_address(text)).then(|| (self.name(suffix), text.to_owned()))
        };
        let ipv4 = unusable(PUBLIC_IP_OVERWRITE, |text| text.parse::<Ipv4Addr>().is_ok());
        let ipv6 = unusable(PUBLIC_IPV6_OVERWRITE, |text| text.parse::<Ipv6Addr>().is_ok());
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// Which addresses an operator wants to be published instead of the node's own.
    pub(crate) fn overwrites(&self, present: &Present<'_>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let of = |suffix: &str| self.get(present, suffix);
        let ipv4 = of(PUBLIC_IP_OVERWRITE).and_then(|it| it.parse().ok());
        (ipv4, of(PUBLIC_IPV6_OVERWRITE).and_then(|it| it.parse().ok()))
    }

    /// Which addresses an operator says that this node has, instead of what its options say.
    pub(crate) fn node_addresses(
        &self,
        present: &Present<'_>,
    ) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let of = |suffix: &str| self.get(present, suffix);
        let ipv4 = of(NODE_PUBLIC_IP).and_then(|it| it.parse().ok());
        (ipv4, of(NODE_PUBLIC_IPV6).and_then(|it| it.parse().ok()))
    }

    /// Those that [`missing`](Self::missing) may write.
    pub(crate) fn ours(&self) -> impl Iterator<Item = String> {
        [
            MANAGED,
            BACKEND_TYPE,
            BACKEND_DATA,
            BACKEND_V6_DATA,
            PUBLIC_IP,
            PUBLIC_IPV6,
            SECOND_BACKEND,
        ]
        .into_iter()
        .map(|suffix| self.name(suffix))
    }
}

/// Ten thousand nodes have the same few types.
fn known(kind: &str) -> Cow<'static, str> {
    match kind {
        "" => Cow::Borrowed(""),
        "host-gw" => Cow::Borrowed("host-gw"),
        "vxlan" => Cow::Borrowed("vxlan"),
        kind => Cow::Owned(kind.into()),
    }
}

const BACKEND_DATA: &str = "backend-data";
const BACKEND_TYPE: &str = "backend-type";
const BACKEND_V6_DATA: &str = "backend-v6-data";
const MANAGED: &str = "kube-subnet-manager";
const NODE_PUBLIC_IP: &str = "node-public-ip";
const NODE_PUBLIC_IPV6: &str = "node-public-ipv6";
const PUBLIC_IP: &str = "public-ip";
const PUBLIC_IP_OVERWRITE: &str = "public-ip-overwrite";
const PUBLIC_IPV6: &str = "public-ipv6";
const PUBLIC_IPV6_OVERWRITE: &str = "public-ipv6-overwrite";
/// Not flannel's: what the node publishes about another backend, while the network moves from one to another.
const SECOND_BACKEND: &str = "second-backend";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> AnnotationNames {
        AnnotationNames::new("flannel.alpha.coreos.com").unwrap()
    }

    fn vxlan() -> LeaseAttrs {
        let text = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_those_that_flannel_takes() {
        // TestNewAnnotations in annotations_test.go, and then some.
        for (prefix, name) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/public-ip"),
            ("flannel.alpha.coreos.com/foo", "flannel.alpha.coreos.com/foo-public-ip"),
            ("flannel.alpha.coreos.com/foo-bar-", "flannel.alpha.coreos.com/foo-bar-public-ip"),
            ("192.168.0.1/foo-bar", "192.168.0.1/foo-bar-public-ip"),
        ] {
            assert_eq!(AnnotationNames::new(prefix).unwrap().name(PUBLIC_IP), name);
        }
        for prefix in
            ["", "org", "org/", "a.b/c/d", "Example.com", "flannel.com/Foo", "a..b", "a.b/ä"]
        {
            assert!(AnnotationNames::new(prefix).is_err(), "{prefix}");
        }
    }

    #[test]
    fn annotations_are_flannels_byte_for_byte() {
        let written = names().missing(&vxlan(), &Present::new());
        let expected = [
            ("backend-data", r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.0.2.1"),
        ];
        let expected = expected.map(|(suffix, value)| (names().name(suffix), value.to_owned()));
        assert_eq!(written, expected.into());
        let host_gw = LeaseAttrs {
            backend_type: "host-gw".into(),
            backend_data: None,
            public_ipv6: Some("2001:db8::1".parse().unwrap()),
            ..vxlan()
        };
        let written = names().missing(&host_gw, &Present::new());
        assert_eq!(written[&names().name(BACKEND_DATA)], "null");
        assert_eq!(written[&names().name(BACKEND_V6_DATA)], "null");
        assert_eq!(written[&names().name(PUBLIC_IPV6)], "2001:db8::1");
        let only_ipv6 = LeaseAttrs {
            public_ip: None,
            backend_data: None,
            backend_v6_data: vxlan().backend_data,
            public_ipv6: host_gw.public_ipv6,
            ..vxlan()
        };
        let written = names().missing(&only_ipv6, &Present::new());
        assert!(!written.contains_key(&names().name(PUBLIC_IP)), "{written:?}");
        assert_eq!(written.len(), 4);
        let udp = LeaseAttrs { backend_type: "".into(), backend_data: None, ..vxlan() };
        assert_eq!(names().missing(&udp, &Present::new())[&names().name(BACKEND_TYPE)], "");
    }

    #[test]
    fn an_operators_address_is_published_instead() {
        let present =
            Present::from([(names().name(PUBLIC_IP_OVERWRITE).into(), "198.51.100.7".into())]);
        let written = names().missing(&vxlan(), &present);
        assert_eq!(written[&names().name(PUBLIC_IP)], "198.51.100.7");
        assert_eq!(names().overwrites(&present).0, Some([198, 51, 100, 7].into()));
        assert!(names().unusable_overwrites(&present).is_empty());
        let name = names().name(PUBLIC_IP_OVERWRITE);
        let present = Present::from([(name.clone().into(), "198.51.100.7 ".into())]);
        let written = names().missing(&vxlan(), &present);
        assert_eq!(written[&names().name(PUBLIC_IP)], "192.0.2.1", "peers could not read it");
        assert_eq!(names().unusable_overwrites(&present), [(name, "198.51.100.7 ".into())]);
    }

    #[test]
    fn an_address_that_a_node_had_is_withdrawn() {
        let both = LeaseAttrs {
            backend_type: "host-gw".into(),
            backend_data: None,
            public_ipv6: Some("2001:db8::1".parse().unwrap()),
            ..vxlan()
        };
        let mut present = Present::new();
        for (attrs, addresses) in [
            (LeaseAttrs { public_ipv6: None, ..both.clone() }, 1),
            (both.clone(), 2),
            (LeaseAttrs { public_ipv6: None, ..both.clone() }, 1),
            (LeaseAttrs { public_ip: None, ..both }, 1),
        ] {
            let written = names().missing(&attrs, &present);
            present.extend(written.into_iter().map(|(name, value)| (name.into(), value.into())));
            let read = names().read(&present).unwrap();
            assert_eq!((read.public_ip, read.public_ipv6), (attrs.public_ip, attrs.public_ipv6));
            let known =
                usize::from(read.public_ip.is_some()) + usize::from(read.public_ipv6.is_some());
            assert_eq!(known, addresses);
            assert!(names().missing(&attrs, &present).is_empty(), "nothing is written twice");
        }
    }

    #[test]
    fn who_does_not_say_true_is_nobody() {
        for (value, is_node) in [("true", true), ("True", false), ("", false), ("false", false)] {
            let present = Present::from([(names().name(MANAGED).into(), value.into())]);
            assert_eq!(names().read(&present).is_some(), is_node, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_is_not_written_again(
            v4 in any::<Option<u32>>(),
            v6 in any::<Option<u128>>(),
            kind in "(vxlan|host-gw|wireguard|udp|)",
            data in proptest::option::of("[a-z]{0,9}"),
            (second, before) in (any::<bool>(), any::<bool>()),
            other in proptest::collection::btree_map("[a-z]{1,5}", "[a-z]{0,5}", 0..4),
        ) {
            let json = |text: &String| RawJson::new(&serde_json::to_string(text).unwrap()).unwrap();
            let attrs = LeaseAttrs {
                public_ip: v4.filter(|bits| *bits != 0).map(Ipv4Addr::from),
                public_ipv6: v6.filter(|bits| *bits != 0).map(Ipv6Addr::from),
                backend_type: kind.into(),
                backend_data: data.as_ref().map(json),
                backend_v6_data: data.as_ref().map(json),
                second: second.then(|| Box::new(r#"{"Type":"vxlan","Data":{},"Role":"next"}"#.parse().unwrap())),
            };
            let mut present: Present<'_> =
                other.iter().map(|(name, value)| (name.into(), value.into())).collect();
            if before {
                present.insert(names().name(SECOND_BACKEND).into(), r#"{"Type":"","Role":"unused"}"#.into());
            }
            let written = names().missing(&attrs, &present);
            prop_assert!(written.keys().all(|name| names().ours().any(|it| it == *name)));
            present.extend(written.into_iter().map(|(name, value)| (name.into(), value.into())));
            prop_assert!(names().missing(&attrs, &present).is_empty());
            let read = names().read(&present).unwrap();
            prop_assert_eq!(&read.backend_type, &attrs.backend_type);
            prop_assert_eq!(&read.second, &attrs.second);
            if attrs.backend_type != "vxlan" || data.is_some() {
                prop_assert_eq!(read.public_ip, attrs.public_ip);
                prop_assert_eq!(read.backend_data, attrs.backend_data);
            }
        }
    }
}
