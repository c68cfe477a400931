//! A name server takes seconds to answer.

#![expect(clippy::disallowed_methods, reason = "the name server has threads of its own")]

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use flannel_testbed::Etcd;
use tokio::time::Instant;

use super::trial::{Trial, dual};

const DELAY: Duration = Duration::from_secs(3);

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_resolver_that_takes_three_seconds_keeps_no_node_from_starting() {
    let mut trial = Trial::new(1).await;
    let etcd = Etcd::start(trial.host(0), &trial.path("etcd")).await.unwrap();
    etcd.ctl(&["put", "/coreos.com/network/config", &dual("host-gw")]).await.unwrap();
    let (address, port) = etcd.url().trim_start_matches("http://").rsplit_once(':').unwrap();
    let bind = || UdpSocket::bind("127.0.0.1:53");
    let socket = trial.host(0).namespace().run(bind).unwrap().unwrap();
    let address = address.parse().unwrap();
    thread::spawn(move || serve(&socket, address));
    let resolver = trial.path("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
    let script = "mount --bind \"$0\" \"$(readlink -f /etc/resolv.conf)\" && exec \"$@\"";
    trial.runner = ["unshare", "--mount", "sh", "-c", script].map(Into::into).to_vec();
    trial.runner.push(resolver.into());
    trial.options.push(format!("-etcd-endpoints=http://etcd.test:{port}").into());
    let started = Instant::now();
    let _node = trial.start(0).await;
    assert!(started.elapsed() >= DELAY, "the name server was asked");
}

/// Answers every question about an IPv4 address, and says that there are no others.
fn serve(socket: &UdpSocket, address: Ipv4Addr) {
    let mut question = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let (asked, socket) = (question[..len].to_vec(), socket.try_clone().unwrap());
        thread::spawn(move || {
            thread::sleep(DELAY);
            let _ = socket.send_to(&answer(&asked, address), from);
        });
    }
}

/// RFC 1035, section 4.
fn answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let name = question[12..].split_inclusive(|byte| *byte == 0).next().unwrap();
    let end = 12 + name.len();
    let is_a = question[end..end + 2] == [0, 1];
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(&question[12..end + 4]);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}
