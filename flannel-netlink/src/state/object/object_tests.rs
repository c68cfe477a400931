use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use proptest::prelude::*;

use super::*;
use crate::{
    state::{Link, testing::object},
    wire::messages,
};

proptest! {
    #[test]
    fn what_is_built_is_parsed(object in object()) {
        let request = object.replace();
        let parsed = Object::parse(&request.message().unwrap());
        prop_assert_eq!(parsed, Some(object));
        prop_assert!(object.fits(&parsed.unwrap()));
    }

    /// The same bytes, read by an implementation that is not ours.
    #[test]
    fn what_is_built_is_well_formed_for_another_reader(object in object()) {
        // It reads no nexthop objects.
        if matches!(object, Object::Nexthop(_)) {
            return Ok(());
        }
        for request in [object.replace(), object.delete()] {
            let bytes = request.bytes();
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes);
            let message = message.map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert!(matches!(message.payload, NetlinkPayload::InnerMessage(_)));
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(
        kind in prop::sample::select(&[16_u16, 17, 20, 21, 24, 25, 28, 29, 104, 105, 0]),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let request = Request::new(kind, 0, &body);
        let message = request.message().unwrap();
        let _ = (Object::parse(&message), Link::parse(&message));
    }

    /// Real messages with single bytes changed go deeper into the parsers than random bytes.
    #[test]
    fn damaged_messages_are_parsed_without_panic(
        object in object(),
        at in any::<prop::sample::Index>(),
        value: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = object.replace().bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(cut.index(bytes.len() + 1));
        for message in messages(&bytes) {
            let _ = (Object::parse(&message), Link::parse(&message));
        }
    }
}

#[test]
fn a_route_through_a_nexthop_object_ignores_the_repeated_gateway() {
    // `10.40.15.0/24 nhid 7 via 10.40.15.0 dev 3 onlink` as the kernel lists it.
    let listed = Route {
        onlink: true,
        ..Route::new("10.40.15.0/24".parse().unwrap(), 90)
            .via_gateway("10.40.15.0".parse().unwrap(), 3)
    };
    let mut body = listed.replace().message().unwrap().body.to_vec();
    crate::wire::push_attribute(&mut body, 30, &7_u32.to_ne_bytes());
    let request = Request::new(24, 0, &body);
    let parsed = Route::parse(&request.message().unwrap());
    assert_eq!(parsed, Some(Route::new("10.40.15.0/24".parse().unwrap(), 90).via_nexthop(7)));
}

#[test]
fn a_route_to_a_host_address_is_about_its_network() {
    let route = Route::new("10.1.2.3/24".parse().unwrap(), 4);
    assert_eq!(route.destination.to_string(), "10.1.2.0/24");
}

#[test]
fn objects_print_as_an_administrator_would_say_them() {
    let route =
        Route::new("10.1.2.0/24".parse().unwrap(), 4).via_gateway("192.0.2.2".parse().unwrap(), 5);
    assert_eq!(Object::from(route).to_string(), "route 10.1.2.0/24 via 192.0.2.2 on device 5");
    assert_eq!(Object::from(route).key().to_string(), "route 10.1.2.0/24");
    let route = Route { metric: 7, ..route };
    assert!(route.to_string().ends_with(" on device 5 with metric 7"), "{route}");
    let mac = "0e:2a:11:22:33:44".parse().unwrap();
    let entry = ForwardingEntry::new(3, mac, "192.0.2.2".parse().unwrap());
    assert_eq!(entry.to_string(), "forwarding entry 0e:2a:11:22:33:44 on device 3 to 192.0.2.2");
}
