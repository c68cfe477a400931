//! Limits of what containers send and receive.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_netlink::Namespace;
use serde_json::{Value, json};

use crate::support::{Node, Pod};

fn config(node: &Node, bandwidth: Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join("networks"),
            "ranges": [[{"subnet": "10.1.2.0/24"}]],
        },
        "runtimeConfig": {"bandwidth": bandwidth},
    })
}

/// How many of 400 packets arrive, of 1,042 bytes each with their headers, that are sent at once.
fn arrived(from: &Namespace, to: &Namespace, address: &str) -> usize {
    let server = to.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let client = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    // One that waits until there is room in the queue would send the rest slowly.
    client.set_nonblocking(true).unwrap();
    let to: SocketAddr = server.local_addr().unwrap();
    let mut buffer = [0; 2000];
    let mut arrived = 0;
    // The server's buffer is small.
    for _ in 0..20 {
        (0..20).for_each(|_| drop(client.send_to(&[0; 1000], to)));
        while server.recv(&mut buffer).is_ok() {
            arrived += 1;
        }
    }
    arrived
}

#[test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
fn packets_beyond_the_limit_wait_or_are_dropped() {
    // 1 kB in a second, after 100 kB: some 96 packets, and one in each second of the twenty looks of 200 ms.
    let limits = [
        (json!({"egressRate": 8000, "egressBurst": 800_000}), [true, false]),
        (json!({"ingressRate": 8000, "ingressBurst": 800_000}), [false, true]),
        (json!({"egressRate": 0, "egressBurst": 0}), [false, false]),
        // More than fits into 32 bits, as bytes.
        (
            json!({"egressRate": 80_000_000_000_u64, "egressBurst": 8_000_000_000_u64}),
            [false, false],
        ),
        (
            json!({"ingressRate": 80_000_000_000_u64, "ingressBurst": 8_000_000_000_u64}),
            [false, false],
        ),
    ];
    for (bandwidth, limited) in limits {
        let (node, pod) = (Node::new(), Pod::new("c1"));
        let config = config(&node, bandwidth.clone());
        node.run("bridge", "ADD", &pod, &config).ok();
        let sent = arrived(&pod.namespace, &node.host, "10.1.2.1");
        let received = arrived(&node.host, &pod.namespace, "10.1.2.2");
        for (count, limited) in [sent, received].into_iter().zip(limited) {
            let expected = if limited { 90..=110 } else { 400..=400 };
            assert!(expected.contains(&count), "{bandwidth}: {sent} sent, {received} received");
        }
        node.run("bridge", "DEL", &pod, &config).ok();
    }
}
