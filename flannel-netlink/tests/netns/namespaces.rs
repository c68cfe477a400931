use std::net::UdpSocket;

use flannel_netlink::Namespace;

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_new_namespace_is_another_one() {
    let ours = Namespace::current().unwrap();
    let fresh = Namespace::create().unwrap();
    assert_ne!(ours, fresh);
    assert_eq!(ours, Namespace::current().unwrap(), "the calling thread stays where it is");
    assert_eq!(fresh.run(Namespace::current).unwrap().unwrap(), fresh);
    assert_eq!(fresh.clone(), fresh);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_socket_stays_in_the_namespace_it_was_opened_in() {
    let fresh = crate::support::fresh();
    let socket = fresh.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let refused = socket.send_to(b"x", "127.0.0.1:9").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::NetworkUnreachable, "its loopback is down");
}

#[test]
fn a_path_that_is_no_namespace_is_named_in_the_error() {
    let error = Namespace::open("/nonexistent/ns").unwrap_err();
    assert_eq!(error.to_string(), "cannot open network namespace /nonexistent/ns");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_panic_inside_continues_in_the_caller() {
    let fresh = crate::support::fresh();
    let result = std::panic::catch_unwind(|| fresh.run(|| panic!("as asked")));
    assert!(result.is_err());
}
