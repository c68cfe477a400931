//! A line to etcd that breaks, or is slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};

pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    faults: Arc<Faults>,
    _lines: JoinSet<()>,
}

struct Faults {
    /// How many chunks of answers pass before one is lost with its line; nothing is lost if it is negative.
    left: AtomicI64,
    /// How many bytes of answers pass in a second, on all lines together that are used one after the other.
    bytes_per_second: AtomicU64,
}

impl Proxy {
    pub(crate) async fn start(target: &str) -> Self {
        let target = target.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let faults = Arc::new(Faults { left: (-1).into(), bytes_per_second: u64::MAX.into() });
        let (mut lines, shared) = (JoinSet::new(), Arc::clone(&faults));
        lines.spawn(async move {
            let mut lines = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&target).await.unwrap();
                lines.spawn(pass(client, server, Arc::clone(&shared)));
            }
        });
        Self { endpoint, faults, _lines: lines }
    }

    pub(crate) fn lose_after(&self, chunks: i64) {
        self.faults.left.store(chunks, Ordering::Relaxed);
    }

    /// Whether what was to be lost has been.
    pub(crate) fn has_lost(&self) -> bool {
        self.faults.left.swap(-1, Ordering::Relaxed) < 0
    }

    pub(crate) fn slow_down_to(&self, bytes_per_second: u64) {
        self.faults.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }
}

async fn pass(client: TcpStream, server: TcpStream, faults: Arc<Faults>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async {
        let mut chunk = vec![0; 1 << 14];
        while let Ok(length @ 1..) = from_server.read(&mut chunk).await {
            // Only while something is to be lost, it is counted.
            let left = &faults.left;
            if left.load(Ordering::Relaxed) >= 0 && left.fetch_sub(1, Ordering::Relaxed) == 0 {
                return;
            }
            let rate = faults.bytes_per_second.load(Ordering::Relaxed);
            if rate < u64::MAX {
                sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
            }
            if to_client.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
