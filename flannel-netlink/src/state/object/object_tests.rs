use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use proptest::prelude::*;

use super::*;
use crate::{
    state::{Link, Program, Via, testing::object},
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
fn a_route_through_a_program_is_known_by_the_number_in_its_label() {
    for to in ["10.244.0.0/16", "fd00:10:244::/48"] {
        let program = Program { number: 0xab_cdef, descriptor: Some(9) };
        let route = Route::new(to.parse().unwrap(), 90).through(program, 7);
        let written = route.replace();
        let read = Route::parse(&written.message().unwrap()).unwrap();
        assert_eq!(read, route);
        let Via::Program(program) = read.via else { panic!("{read:?}") };
        assert_eq!(program.descriptor, None);
        // The kernel finds a route to delete without its program, which may be another one's by now.
        let deleted = route.delete();
        let named = Route::parse(&deleted.message().unwrap()).unwrap();
        assert_eq!(named.via, Via::Direct);
    }
}

#[test]
fn a_route_through_anothers_program_is_something_else() {
    let program = Program { number: 0xab_cdef, descriptor: Some(9) };
    let route = Route::new("10.244.0.0/16".parse().unwrap(), 90).through(program, 7);
    let mut bytes = route.replace().bytes().to_vec();
    let label = bytes.windows(7).position(|it| it == b"program").unwrap();
    bytes[label] = b'P';
    let read = Route::parse(&messages(&bytes).next().unwrap()).unwrap();
    assert_eq!(read.via, Via::Other);
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
    let mac = "0e:2a:11:22:33:44".parse().unwrap();
    let entry = ForwardingEntry::new(3, mac, "192.0.2.2".parse().unwrap());
    assert_eq!(entry.to_string(), "forwarding entry 0e:2a:11:22:33:44 on device 3 to 192.0.2.2");
}
