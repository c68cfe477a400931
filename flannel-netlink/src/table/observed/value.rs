use std::net::IpAddr;

use crate::state::{ForwardingEntry, Key, MacAddress, Neighbour, Nexthop, Object, Route, Via};

/// What the usual objects have beyond their keys, in 24 bytes instead of the 96 of an [`Object`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Value {
    ForwardingEntry { remote: IpAddr },
    Neighbour { mac: MacAddress },
    Nexthop { gateway: IpAddr, link: u32, protocol: u8, onlink: bool },
    RouteViaGateway { gateway: IpAddr, link: u32, protocol: u8, onlink: bool },
    RouteViaNexthop { id: u32, protocol: u8, scope: u8 },
}

impl Value {
    /// `None` for an object with attributes that hardly any has.
    pub(super) fn of(object: &Object) -> Option<Self> {
        let value = match *object {
            Object::Address(_) => return None,
            Object::ForwardingEntry(it) => Self::ForwardingEntry { remote: it.remote? },
            Object::Neighbour(it) => Self::Neighbour { mac: it.mac? },
            Object::Nexthop(Nexthop { gateway, link, protocol, onlink, .. }) => {
                Self::Nexthop { gateway, link, protocol, onlink }
            }
            Object::Route(Route { protocol, scope, onlink, link, via, .. }) => match via {
                Via::Gateway(gateway) => {
                    Self::RouteViaGateway { gateway, link: link?, protocol, onlink }
                }
                Via::Nexthop(id) => Self::RouteViaNexthop { id, protocol, scope },
                Via::Direct | Via::Other => return None,
            },
        };
        (value.object(&object.key()) == Some(*object)).then_some(value)
    }

    /// The object with this key; `None` if that is of another kind.
    pub(super) fn object(self, key: &Key) -> Option<Object> {
        let object = match (*key, self) {
            (Key::ForwardingEntry(link, mac), Self::ForwardingEntry { remote }) => {
                ForwardingEntry::new(link, mac, remote).into()
            }
            (Key::Neighbour(link, address), Self::Neighbour { mac }) => {
                Neighbour::new(link, address, mac).into()
            }
            (Key::Nexthop(id), Self::Nexthop { gateway, link, protocol, onlink }) => {
                Nexthop { id, link, gateway, onlink, protocol }.into()
            }
            (Key::Route(destination, table, metric), value) => {
                let route = |protocol| Route { table, metric, ..Route::new(destination, protocol) };
                match value {
                    Self::RouteViaGateway { gateway, link, protocol, onlink } => {
                        let route = route(protocol).via_gateway(gateway, link);
                        Route { onlink, ..route }.into()
                    }
                    Self::RouteViaNexthop { id, protocol, scope } => {
                        Route { scope, ..route(protocol).via_nexthop(id) }.into()
                    }
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::object;

    #[test]
    fn a_value_is_small() {
        assert!(size_of::<Option<Value>>() <= 24, "{}", size_of::<Option<Value>>());
    }

    proptest! {
        #[test]
        fn an_object_is_its_key_and_its_value(object in object()) {
            if let Some(value) = Value::of(&object) {
                prop_assert_eq!(value.object(&object.key()), Some(object));
            }
        }
    }
}
