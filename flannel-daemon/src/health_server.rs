//! Answers questions about the node over HTTP, on a TCP port for probes and on a local socket for operators.

mod explain_request;

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use hyper::{
    Request, Response, StatusCode, Uri, body::Incoming, header, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, UnixListener},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    DaemonError,
    handle::{DaemonHandle, Dead, PATIENCE},
    retry::Outage,
};

/// Where questions come from.
pub(crate) enum Listener {
    /// From whoever reaches the port: no more than probes need is said.
    Network(TcpListener),
    /// From those whom the socket's permissions let in.
    Operators(UnixListener),
}

/// Listens at `address`. Both addresses that stand for all stand for those of both families, as in flanneld: kubelets ask at an
/// address of the node, which may be of either.
pub(crate) async fn listen(address: SocketAddr) -> Result<Listener, DaemonError> {
    let all = address.ip().is_unspecified().then(|| listen_on_all(address.port()).ok()).flatten();
    let listener = match all {
        Some(listener) => Ok(listener),
        // One address, or a kernel without IPv6.
        None => TcpListener::bind(address).await,
    };
    let listener = listener.map_err(|source| DaemonError::HealthServer { address, source })?;
    info!(%address, "answering /healthz, /readyz and /metrics");
    Ok(Listener::Network(listener))
}

/// Listens at the addresses of both families.
fn listen_on_all(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Serves until it is dropped. When all places are taken, the oldest connection makes room: who sends half a request keeps nobody
/// else from an answer.
pub(crate) async fn serve(listener: Listener, daemon: DaemonHandle) {
    let mut connections = JoinSet::new();
    let (mut oldest_first, mut outage) = (VecDeque::new(), Outage::default());
    loop {
        let (stream, local) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if outage.failed(Instant::now()) {
                    warn!(%error, "cannot accept a health check's connection, retrying");
                }
                sleep(RETRY).await;
                continue;
            }
        };
        outage.end(Instant::now());
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection: &AbortHandle| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let daemon = daemon.clone();
        oldest_first.push_back(connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let (uri, daemon) = (request.uri().clone(), daemon.clone());
                async move { Ok::<_, Infallible>(answer(&uri, local, &daemon).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            match timeout(LONGEST, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a health check failed"),
                Err(_) => debug!("a health check took too long"),
            }
        }));
    }
}

/// The answer to a question. Methods do not matter, as with flannel.
async fn answer(uri: &Uri, local: bool, daemon: &DaemonHandle) -> Response<String> {
    match uri.path() {
        "/healthz" => match daemon.alive().await {
            Ok(()) => text(StatusCode::OK, "flannel-node is running\n".into()),
            Err(Dead::Ended) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "the node has ended\n".into())
            }
            Err(Dead::Hanging) => {
                let line = format!("the node's loop has not turned for {} s\n", PATIENCE.as_secs());
                text(StatusCode::SERVICE_UNAVAILABLE, line)
            }
        },
        "/readyz" => {
            let readiness = daemon.readiness();
            let code =
                if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(code, readiness.to_string())
        }
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            daemon.metrics().to_string(),
        ),
        "/status" if local => {
            let body = serde_json::to_string(&daemon.status_document().await);
            let body = body.expect("a status document is valid JSON");
            typed(StatusCode::OK, "application/json", body)
        }
        "/readiness" if local => {
            let body = serde_json::to_string(&daemon.readiness_report());
            let body = body.expect("a report is valid JSON");
            typed(StatusCode::OK, "application/json", body)
        }
        "/explain" if local || daemon.explains_to_network() => {
            explain_request::answer(uri.query().unwrap_or_default(), daemon).await
        }
        _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".into()),
    }
}

fn text(code: StatusCode, body: String) -> Response<String> {
    typed(code, "text/plain; charset=utf-8", body)
}

fn typed(code: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

impl Listener {
    /// The next connection, and whether it is an operator's.
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, bool)> {
        Ok(match self {
            Self::Network(listener) => (Box::new(listener.accept().await?.0), false),
            Self::Operators(listener) => (Box::new(listener.accept().await?.0), true),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How many connections are served at once: probes and scrapers of some monitoring systems.
const CONNECTIONS: usize = 32;

/// How long a connection may last. Probes ask once; who keeps a connection open takes another one after that.
const LONGEST: Duration = Duration::from_secs(60);

/// Between failures to take a connection.
const RETRY: Duration = Duration::from_secs(1);
/// How many connections may wait to be accepted: as many as the standard library has.
const BACKLOG: u32 = 128;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn what_is_asked_is_answered_and_peers_are_told_to_operators_only() {
        let daemon = DaemonHandle::new(Path::new("/no/such/subnet.env"), false);
        let ask = async |path: &str, local| {
            let response = answer(&path.parse().unwrap(), local, &daemon).await;
            (response.status().as_u16(), response.into_body())
        };
        assert_eq!(ask("/healthz", false).await, (200, "flannel-node is running\n".into()));
        let (code, body) = ask("/readyz", false).await;
        assert_eq!(
            (code, body.as_str()),
            (503, "flannel-node is not ready\nstart: the node is being set up\n")
        );
        assert!(ask("/metrics", false).await.1.contains("\nflannel_ready 0\n"));
        assert_eq!(ask("/status", false).await.0, 404);
        assert_eq!(ask("/status", true).await.0, 200);
        assert_eq!(ask("/readiness", false).await.0, 404);
        let path = "/explain?source=10.3.1.2&destination=10.3.2.2";
        assert_eq!(ask(path, false).await.0, 404, "unless an operator wants it");
        assert_eq!(ask(path, true).await.0, 503, "nothing is known yet");
        assert_eq!(ask("/", true).await.0, 404);
    }

    #[tokio::test]
    async fn plugins_are_told_what_is_missing() {
        let daemon = DaemonHandle::new(Path::new("/no/such/subnet.env"), false);
        let body = answer(&Uri::from_static("/readiness"), true, &daemon).await.into_body();
        let expected = r#"{"ready":false,"missing":["start: the node is being set up"],"notes":[],"not_ready_seconds":null}"#;
        assert_eq!(body, expected);
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        for all in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(all.parse().unwrap()).await.unwrap();
            let Listener::Network(socket) = &listener else { panic!("a port") };
            let port = socket.local_addr().unwrap().port();
            let daemon = DaemonHandle::new(Path::new("/no/such/subnet.env"), false);
            let server = tokio::spawn(serve(listener, daemon));
            for address in ["127.0.0.1", "::1"] {
                // Some machines have no IPv6.
                if TcpListener::bind((address, 0)).await.is_err() {
                    continue;
                }
                TcpStream::connect((address, port)).await.expect(address);
            }
            server.abort();
        }
        let one = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let Listener::Network(socket) = &one else { panic!("a port") };
        assert!(TcpStream::connect(("::1", socket.local_addr().unwrap().port())).await.is_err());
    }

    #[tokio::test]
    async fn half_sent_requests_keep_nobody_from_an_answer() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let daemon = DaemonHandle::new(Path::new("/no/such/subnet.env"), false);
        let server = tokio::spawn(serve(Listener::Network(socket), daemon));
        let mut half_sent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HT").await.unwrap();
            half_sent.push(stream);
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_string(&mut text));
        read.await.expect("it is answered").unwrap();
        assert!(text.starts_with("HTTP/1.0 200 OK"), "{text}");
        // The oldest connections made room.
        let mut byte = [0];
        let closed = timeout(Duration::from_secs(20), half_sent[0].read(&mut byte)).await;
        assert!(matches!(closed.expect("it is closed"), Ok(0) | Err(_)));
        server.abort();
    }
}
