//! The member by which a lease names a second backend, beside flannel's members.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{RawJson, backend_type};
use crate::fields::{FieldError, Fields};

/// What a node publishes about a second backend while the network moves from one to another.
///
/// In a lease's JSON it is the member `SecondBackend`, behind flannel's. flanneld ignores members that it does not know, and so does a
/// node for which this one makes no sense: such a lease has its first backend only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SecondBackend {
    /// The backend's name as [`LeaseAttrs::backend_type`](super::LeaseAttrs::backend_type) has it: empty for `udp`.
    pub backend_type: Cow<'static, str>,
    /// What the backend tells its peers about IPv4.
    pub backend_data: Option<RawJson>,
    /// What the backend tells its peers about IPv6.
    pub backend_v6_data: Option<RawJson>,
    /// What the node does with it.
    pub role: SecondRole,
}

/// What a node does with its second backend. It accepts packets by both, whatever the role.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SecondRole {
    /// The node moves from its first backend to its second one, by which its peers are to send.
    Next,
    /// The node moves to its first backend, by which its peers are to send, and still sends to some of them by its second one.
    InUse,
    /// The same, and it sends to nobody by its second one.
    Unused,
}

impl SecondRole {
    const ALL: [Self; 3] = [Self::Next, Self::InUse, Self::Unused];

    const fn name(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::InUse => "in-use",
            Self::Unused => "unused",
        }
    }
}

impl fmt::Display for SecondBackend {
    /// The member's JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&super::with_escapes(json.chars()))
    }
}

impl FromStr for SecondBackend {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let fields = Fields::parse(text)?;
        let raw = |key: &str| fields.raw(key).map(RawJson::of_valid);
        let role = |text: &str| SecondRole::ALL.into_iter().find(|role| role.name() == text);
        let missing = || FieldError::Invalid {
            key: "Role".into(),
            value: "absent".into(),
            expected: ROLES.into(),
        };
        Ok(Self {
            backend_type: fields.text("Type")?.map_or(Cow::Borrowed(""), backend_type),
            backend_data: raw("Data"),
            backend_v6_data: raw("V6Data"),
            role: fields.parsed("Role", ROLES, role)?.ok_or_else(missing)?,
        })
    }
}

impl Serialize for SecondBackend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("Type", &self.backend_type)?;
        if let Some(data) = &self.backend_data {
            map.serialize_entry("Data", data)?;
        }
        if let Some(data) = &self.backend_v6_data {
            map.serialize_entry("V6Data", data)?;
        }
        map.serialize_entry("Role", self.role.name())?;
        map.end()
    }
}

const ROLES: &str = "next, in-use or unused";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::LeaseAttrs;

    #[test]
    fn it_stands_behind_flannels_members() {
        let text = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw","SecondBackend":{"Type":"vxlan","Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"Role":"next"}}"#;
        let attrs: LeaseAttrs = text.parse().unwrap();
        let second = attrs.second.as_deref().unwrap();
        assert_eq!((&*second.backend_type, second.role), ("vxlan", SecondRole::Next));
        assert_eq!(attrs.to_string(), text);
    }

    #[test]
    fn one_that_makes_no_sense_costs_only_itself() {
        for second in
            ["7", "null", "{}", r#"{"Type":"vxlan","Role":"x"}"#, r#"{"Type":7,"Role":"next"}"#]
        {
            let text = format!(
                r#"{{"PublicIP":"192.0.2.1","BackendType":"host-gw","SecondBackend":{second}}}"#
            );
            let attrs: LeaseAttrs = text.parse().unwrap();
            assert_eq!((&*attrs.backend_type, &attrs.second), ("host-gw", &None), "{second}");
        }
        let error = r#"{"Type":"vxlan"}"#.parse::<SecondBackend>().unwrap_err();
        assert_eq!(error.to_string(), "Role is absent, expected next, in-use or unused");
    }

    proptest! {
        #[test]
        fn no_member_panics_and_what_is_read_is_printed_alike(text in "\\PC{0,60}", quoted in any::<bool>()) {
            let value = if quoted { serde_json::to_string(&text).unwrap() } else { text };
            let text = format!(r#"{{"Type":{value},"Role":"next","Data":{value}}}"#);
            if let Ok(second) = text.parse::<SecondBackend>() {
                prop_assert_eq!(second.to_string().parse::<SecondBackend>().unwrap(), second);
            } else {
                prop_assert!(!quoted, "{}", text);
            }
        }
    }
}
