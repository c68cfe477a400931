//! What pods send, whole at the other end and unreadable in between.

use std::{
    io::Read,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_core::Backend;
use flannel_netlink::Namespace;
use flannel_testbed::{
    Pod,
    probe::{self, Ping},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{DUAL, IPV4, Lab, ONE};

fn socket(pod: &Pod) -> UdpSocket {
    let address = SocketAddr::new(pod.ip(), 0);
    let socket = pod.namespace().run(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn large_sends_arrive_as_they_are() {
    for config in [DUAL, ONE] {
        let lab = Lab::new(&[config; 2]).await;
        let (a, b) = (&lab.pods[0], &lab.pods[1]);
        for ip in b.endpoint().ips() {
            let large = Ping::default().size(60_000).timeout(Duration::from_secs(5));
            let pong = a.ping_with(ip, large).await;
            assert!(pong.is_ok(), "{pong:?}, {:?}", lab.nodes[0].backend.report());
        }
        assert!(lab.reaches(1, 0).await);
        let (from, to) = (socket(a), socket(b));
        for n in 0..20 {
            let data: Vec<u8> = (0..8000).map(|at| (at * 7 + n) as u8).collect();
            from.send_to(&data, to.local_addr().unwrap()).unwrap();
            let mut buffer = vec![0; 9000];
            assert_eq!(to.recv(&mut buffer).unwrap(), data.len());
            assert_eq!(buffer[..data.len()], data);
        }
        let tcp = probe::tcp_throughput(a, b, Duration::from_secs(1)).await.unwrap();
        assert!(tcp.bits_per_second() > 1e7, "{tcp}");
        let (packets, calls) = (lab.count(0, "packets_sent"), lab.count(0, "calls_sent"));
        assert!(packets > 4 * calls, "{packets} packets in {calls} calls");
        for name in
            ["dropped_bad_offload", "dropped_forged", "dropped_malformed", "dropped_replayed"]
        {
            assert_eq!([lab.count(0, name), lab.count(1, name)], [0, 0], "{name}");
        }
        let properties = lab.nodes[0].backend.report().properties;
        assert_eq!(properties["engine"], "userspace");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn not_one_byte_is_on_the_wire_in_the_clear() {
    let mut lab = Lab::new(&[IPV4; 2]).await;
    // All between the hosts, and all that enters and leaves one of them and its devices.
    let (between, host) = (lab.testbed.switch(), lab.testbed.host(0).namespace());
    let (between, host) = (capture(between), capture(host));
    let (from, to) = (socket(&lab.pods[0]), socket(&lab.pods[1]));
    let data = MARK.repeat(60);
    let send = || from.send_to(&data, to.local_addr().unwrap()).unwrap();
    // Before there is a session, with one, and while the other end starts anew.
    for _ in 0..10 {
        send();
    }
    assert_eq!(to.recv(&mut [0; 2000]).unwrap(), data.len());
    lab.restart(1).await;
    for _ in 0..10 {
        send();
    }
    assert_eq!(to.recv(&mut [0; 2000]).unwrap(), data.len());
    let is_clear = |frame: &Vec<u8>| frame.windows(MARK.len()).any(|window| window == MARK);
    // An Ethernet header, and UDP of WireGuard's port in IPv4.
    let is_encrypted = |frame: &&Vec<u8>| {
        let port = 51820_u16.to_be_bytes();
        frame.len() > 38 && frame[12..14] == [8, 0] && frame[36..38] == port
    };
    let (between, host) = (frames(between), frames(host));
    assert!(!between.iter().any(is_clear), "in the clear between hosts");
    let encrypted = between.iter().filter(is_encrypted).count();
    // On the veth of the pod, and on the TUN device.
    let inside = host.iter().filter(|frame| is_clear(frame)).count();
    assert!(encrypted >= 4 && inside >= 20, "{encrypted} encrypted, {inside} of the pod");
}

/// A socket that gets all that enters and leaves the devices of a namespace.
fn capture(of: &Namespace) -> Socket {
    let all = Some(Protocol::from(i32::from(0x0003_u16.to_be())));
    let open = || Socket::new(Domain::PACKET, Type::RAW, all);
    let capture = of.run(open).unwrap().unwrap();
    capture.set_recv_buffer_size(64 << 20).unwrap();
    capture.set_nonblocking(true).unwrap();
    capture
}

/// What a socket has.
fn frames(mut capture: Socket) -> Vec<Vec<u8>> {
    let (mut frames, mut frame) = (Vec::new(), vec![0; 65_536]);
    while let Ok(len) = capture.read(&mut frame) {
        frames.push(frame[..len].to_vec());
    }
    frames
}

const MARK: &[u8] = b"plain text of a pod";
