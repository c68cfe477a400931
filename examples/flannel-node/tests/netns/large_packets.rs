//! Pods that send packets as large as the network card takes, while nodes move to a backend that takes less, and back.

use std::{
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use flannel_testbed::{
    Pod, eventually,
    probe::{Ping, PingError, ping},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    migrating::{configure, finished},
    support::Cluster,
};

/// A connection goes on without a pause of 5 s, as the kernel tells it what the new backend takes; so do packets of that size that
/// allow no fragments.
pub(crate) async fn get_through(large: &'static str, small: &'static str, takes: usize) {
    let mut cluster = Cluster::new(2, large).await;
    let (_nodes, pods) = cluster.start_all().await;
    let whole = Ping::default().size(1500).unfragmented();
    pods[0].ping_with(pods[1].ip(), whole).await.expect("pods take 1500 bytes");
    let mut traffic = JoinSet::new();
    let [rounds, pings] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let (near, far) = connection(&pods[0], &pods[1]);
    traffic.spawn(answer(far));
    traffic.spawn(ask(near, Arc::clone(&rounds)));
    let (from, to) = (pods[1].endpoint(), pods[0].ip());
    let count = Arc::clone(&pings);
    traffic.spawn(async move {
        loop {
            let whole = Ping::default().size(takes).unfragmented();
            ping(from.clone(), to, whole).await.expect("it fits by either backend");
            count.fetch_add(1, Relaxed);
            sleep(PAUSE).await;
        }
    });
    for network in [small, large] {
        configure(&cluster, network).await;
        cluster.network = network;
        finished(&cluster, network).await;
        let before = [rounds.load(Relaxed), pings.load(Relaxed)];
        eventually(async || {
            assert!(traffic.try_join_next().is_none());
            rounds.load(Relaxed) > before[0] + 10 && pings.load(Relaxed) > before[1] + 10
        })
        .await;
        if network == small {
            let refused = pods[0].ping_with(pods[1].ip(), whole).await;
            assert!(matches!(refused, Err(PingError::TooBig { .. })), "{refused:?}");
        }
    }
    assert!(traffic.try_join_next().is_none());
}

fn connection(from: &Pod, to: &Pod) -> (TcpStream, TcpStream) {
    let listen = || TcpListener::bind((to.ip(), 0)).unwrap();
    let listener = to.namespace().run(listen).unwrap();
    let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = from.namespace().run(connect).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

fn stream(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    stream.try_into().unwrap()
}

/// Sends many packets at once, and waits until all of them are there.
async fn ask(near: TcpStream, rounds: Arc<AtomicU64>) {
    let mut near = stream(near);
    let chunk = [7; CHUNK];
    loop {
        let round = async {
            near.write_all(&chunk).await.unwrap();
            near.read_exact(&mut [0]).await.unwrap();
        };
        timeout(STALLED, round).await.expect("the connection goes on");
        rounds.fetch_add(1, Relaxed);
        sleep(PAUSE).await;
    }
}

async fn answer(far: TcpStream) {
    let mut far = stream(far);
    let mut chunk = [0; CHUNK];
    loop {
        far.read_exact(&mut chunk).await.unwrap();
        far.write_all(b"x").await.unwrap();
    }
}

/// Some ten packets, bytes.
const CHUNK: usize = 16 << 10;
const PAUSE: Duration = Duration::from_millis(10);
const STALLED: Duration = Duration::from_secs(5);
