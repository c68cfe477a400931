//! Beside wireguard-go, an implementation that is not ours.
#![expect(
    clippy::disallowed_methods,
    reason = "wireguard-go is a program, and ip sets up what flannel would"
)]

use std::{
    fmt::Write as _,
    io::{Read, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use flannel_core::{Lease, LeaseAttrs, RawJson};
use flannel_netlink::wireguard::{PublicKey, SecretKey};
use flannel_testbed::{
    Pod, Process,
    probe::{Ping, tcp_throughput},
    soon, wireguard_go,
};
use tokio::time::sleep;

use crate::lab::{DUAL, IPV4, Lab};

/// One that runs on the second host of a lab, in the place of its node.
struct WireguardGo {
    _process: Process,
    key: PublicKey,
}

impl WireguardGo {
    /// Behind `blocks` of its own, with a peer of this key and these blocks.
    async fn start(lab: &Lab, peer: PublicKey, psk: Option<&SecretKey>, endpoint: IpAddr) -> Self {
        let host = lab.testbed.host(1);
        // Its socket has the device's name, in a folder that all tests share.
        let device = format!("wg{}", std::process::id() % 100_000);
        let device = format!("{device}{}", if endpoint.is_ipv4() { "a" } else { "b" });
        let mut command =
            Command::new(wireguard_go().expect("wireguard-go: run ./ci.sh wireguard_go"));
        command.args(["-f", &device]);
        let process = host.spawn(command).unwrap();
        let socket = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
        let connect = async || {
            loop {
                match UnixStream::connect(&socket) {
                    Ok(stream) => return stream,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let mut stream = soon(connect()).await;
        let private = SecretKey::new([0x42; 32]).clamped();
        let mut text = format!("set=1\nprivate_key={}\nlisten_port=51820\n", hex(private.bytes()));
        writeln!(text, "public_key={}", hex(peer.bytes())).unwrap();
        if let Some(psk) = psk {
            writeln!(text, "preshared_key={}", hex(psk.bytes())).unwrap();
        }
        writeln!(text, "endpoint={}", SocketAddr::new(endpoint, 51820)).unwrap();
        for block in lab.leases[0].subnet.blocks() {
            writeln!(text, "allowed_ip={block}").unwrap();
        }
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = [0; 64];
        let len = stream.read(&mut answer).unwrap();
        assert_eq!(&answer[..len], b"errno=0\n\n");
        for line in [
            format!("link set {device} mtu 1420 up"),
            format!("route add {} dev {device}", lab.leases[0].subnet.ipv4().unwrap()),
        ] {
            let mut command = Command::new("ip");
            command.args(line.split(' '));
            host.run(command).await.unwrap();
        }
        if let Some(block) = lab.leases[0].subnet.ipv6() {
            let mut command = Command::new("ip");
            command.args(["-6", "route", "add", &block.to_string(), "dev", &device]);
            host.run(command).await.unwrap();
        }
        // X25519 of the private key, from `wg pubkey`.
        let key = PUBLIC.parse().unwrap();
        Self { _process: process, key }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn key_of(lease: &Lease) -> PublicKey {
    let data = lease.attrs.backend_data.as_ref().unwrap().as_str();
    let start = data.find(r#""PublicKey":""#).unwrap() + 13;
    data[start..start + 44].parse().unwrap()
}

async fn reaches(from: &Pod, to: &Pod) {
    for ip in to.endpoint().ips() {
        from.ping_with(ip, Ping::default().timeout(Duration::from_secs(5))).await.unwrap();
        let large = Ping::default().size(20_000).timeout(Duration::from_secs(5));
        from.ping_with(ip, large).await.unwrap();
    }
}

async fn both_ways(config: &str, psk: Option<&SecretKey>, is_v6: bool) {
    let mut lab = Lab::new(&[config; 2]).await;
    // The second node makes room.
    let node = lab.nodes.pop().unwrap();
    node.network.teardown().await.unwrap();
    let host = lab.testbed.host(0);
    let endpoint = if is_v6 { host.ipv6().unwrap().into() } else { host.ip() };
    let go = WireguardGo::start(&lab, key_of(&lab.leases[0]), psk, endpoint).await;
    let data = RawJson::new(&format!(r#"{{"PublicKey":"{}","Port":51820}}"#, go.key)).unwrap();
    let data = Some(data);
    let attrs = LeaseAttrs {
        backend_data: data.clone(),
        backend_v6_data: lab.leases[1].attrs.backend_v6_data.as_ref().and(data),
        ..lab.leases[1].attrs.clone()
    };
    lab.leases[1] = Lease::new(lab.leases[1].subnet, attrs);
    lab.sync(0).await;
    let (a, b) = (&lab.pods[0], &lab.pods[1]);
    reaches(a, b).await;
    reaches(b, a).await;
    for (from, to) in [(a, b), (b, a)] {
        let tcp = tcp_throughput(from, to, Duration::from_secs(1)).await.unwrap();
        assert!(tcp.bits_per_second() > 1e6, "{tcp}");
    }
    for name in ["dropped_forged", "dropped_malformed", "dropped_spoofed_source"] {
        assert_eq!(lab.count(0, name), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn wireguard_go_is_reached_and_reaches_pods_over_ipv4() {
    both_ways(IPV4, None, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for /dev/net/tun: run ./ci.sh tun as root"]
async fn wireguard_go_carries_both_families_over_ipv6_with_a_psk() {
    let psk = SecretKey::new([7; 32]);
    let engine = format!(r#""Engine":"userspace","Mode":"ipv6","PSK":"{}""#, *psk.reveal());
    both_ways(&DUAL.replace(r#""Engine":"userspace""#, &engine), Some(&psk), true).await;
}

/// The public key of the private key that wireguard-go has here.
const PUBLIC: &str = "EyxEK+AQ+9V+cmAzKKp25x/MwVA6riGTJ9FNnJmT9HI=";
