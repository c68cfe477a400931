//! A connection to one member: TCP, and TLS with certificates that are read for each connection.

use std::{
    borrow::Cow,
    fs, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use flannel_tls::{Part, Pem, PemError};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    sync::oneshot,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, pki_types::ServerName},
};

use crate::etcd::{
    config::{Endpoint, EtcdConfig, EtcdConfigError, EtcdPem},
    endpoint_error::EndpointError,
};

/// What TLS needs. Files are read again for each connection, so that renewed ones are used from the next one on.
#[derive(Clone, Debug)]
pub(super) struct TlsSources {
    ca: Option<Source>,
    /// Certificate and key.
    own: Option<(Source, Source)>,
}

#[derive(Clone, Debug)]
struct Source {
    pem: EtcdPem,
    /// What it is called where it is no file.
    name: &'static str,
}

/// A connection. It tells of its first byte, and remembers what TLS had against it, because HTTP/2 passes that on as text at
/// best.
pub(super) struct MemberStream {
    io: Box<dyn Io>,
    first: Option<oneshot::Sender<()>>,
    /// What was wrong in writing, until everything is read.
    broken: Option<io::Error>,
    first_error: FirstError,
}

/// The first error in reading from a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct FirstError(Arc<OnceLock<io::Error>>);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl TlsSources {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let source = |pem: &Option<EtcdPem>, name| pem.clone().map(|pem| Source { pem, name });
        Self {
            ca: source(&config.ca, "the certificate of the CA"),
            own: source(&config.cert, "the certificate").zip(source(&config.key, "the key")),
        }
    }

    /// Reads them.
    pub(super) fn load(&self) -> Result<ClientConfig, EtcdConfigError> {
        let ca = self.ca.as_ref().map(Source::read).transpose()?;
        let own = match &self.own {
            Some((certificate, key)) => Some((certificate.read()?, key.read()?)),
            None => None,
        };
        let own = own.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let made = Pem { authority: ca.as_deref(), own }.client_config("h2");
        made.map_err(|PemError { part, source }| {
            let own = self.own.as_ref();
            let place = match part {
                Part::Authority => self.ca.as_ref(),
                Part::Certificate => own.map(|(certificate, _)| certificate),
                Part::Key => own.map(|(_, key)| key),
            };
            match place {
                Some(place) => place.unusable(source),
                None => unusable("the machine's certificates", source),
            }
        })
    }
}

/// Connects to `endpoint`, with `files` if it wants TLS. Each step has a limit of its own.
pub(super) async fn dial(
    endpoint: &Endpoint,
    files: &TlsSources,
) -> Result<MemberStream, EndpointError> {
    let unreachable = |reason| EndpointError::Unreachable { endpoint: endpoint.clone(), reason };
    let host = (&*endpoint.host, endpoint.port);
    let resolved = step(endpoint, "resolve the name", RESOLVE_TIMEOUT, lookup_host(host)).await?;
    let addresses = alternating(resolved.map_err(unreachable)?.collect());
    let connecting = step(endpoint, "connect", CONNECT_TIMEOUT, connect_any(addresses)).await?;
    let tcp = connecting.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    if !endpoint.tls {
        return Ok(MemberStream::new(tcp));
    }
    let files = files.clone();
    let config = tokio::task::spawn_blocking(move || files.load()).await;
    let config = config.expect("reading files does not panic");
    let config = config.map_err(|source| EndpointError::File { source })?;
    let tls = |error| EndpointError::of_tls(endpoint.clone(), error);
    let name = ServerName::try_from(endpoint.host.clone());
    let name = name.map_err(|error| unreachable(io::Error::other(error)))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let io = step(endpoint, "agree on TLS", CONNECT_TIMEOUT, handshake).await?.map_err(tls)?;
    Ok(MemberStream::new(io))
}

/// The output of one step, or which one took too long.
pub(super) async fn step<T>(
    endpoint: &Endpoint,
    step: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, EndpointError> {
    let late = |_| EndpointError::Late { endpoint: endpoint.clone(), step, limit };
    timeout(limit, work).await.map_err(late)
}

/// The addresses with their families in turn, beginning with the first one, as RFC 8305 wants.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut other) = (first.into_iter(), other.into_iter());
    std::iter::from_fn(|| {
        std::mem::swap(&mut first, &mut other);
        other.next().or_else(|| first.next())
    })
    .collect()
}

/// Connects to whichever address answers first. Each gets a moment before the next one is tried beside it, as in RFC 8305.
async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::other("the name has no address");
    loop {
        match waiting.next() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        let pause = async {
            match waiting.len() {
                0 => std::future::pending().await,
                _ => tokio::time::sleep(ATTEMPT_PAUSE).await,
            }
        };
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = pause => {}
        }
    }
}

/// How long a resolver may take: its own limit for one server is 5 s.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(6);

/// How long an endpoint may take to be connected to, and then for each further step.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// RFC 8305, section 8.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(250);

impl MemberStream {
    fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), first: None, broken: None, first_error: FirstError::default() }
    }

    /// Resolves when the other side has said something. It fails when the line is dropped before.
    pub(super) fn first_byte(&mut self) -> oneshot::Receiver<()> {
        let (first, heard) = oneshot::channel();
        self.first = Some(first);
        heard
    }

    /// Where to find what was wrong after the line has broken.
    pub(super) fn first_error(&self) -> FirstError {
        self.first_error.clone()
    }

    /// Keeps an error in writing back until all is read that came in before: the reason may be there.
    fn after_reading<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let error = match result {
            Poll::Ready(Err(error)) => error,
            result => return result,
        };
        let mut rest = [0; 1024];
        loop {
            let mut buf = ReadBuf::new(&mut rest);
            match Pin::new(&mut *self).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.broken = Some(error);
                    return Poll::Pending;
                }
            }
        }
    }
}

impl FirstError {
    /// The error, as far as it can be copied.
    pub(super) fn get(&self) -> Option<io::Error> {
        let error = self.0.get()?;
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        Some(match tls {
            Some(tls) => io::Error::new(error.kind(), tls.clone()),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }
}

impl AsyncRead for MemberStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match ready!(Pin::new(&mut self.io).poll_read(cx, buf)) {
            Ok(()) if buf.filled().len() > before => {
                // Whoever waits for it may have given up.
                let _ = self.first.take().map(|first| first.send(()));
                Poll::Ready(Ok(()))
            }
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                // The first one counts.
                let _ = self.first_error.0.set(error);
                Poll::Ready(Err(self.first_error.get().unwrap_or(copy)))
            }
        }
    }
}

impl AsyncWrite for MemberStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = match self.broken.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.io).poll_write(cx, buf),
        };
        self.after_reading(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = match self.broken.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.io).poll_flush(cx),
        };
        self.after_reading(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Source {
    fn read(&self) -> Result<Cow<'_, [u8]>, EtcdConfigError> {
        match &self.pem {
            EtcdPem::Bytes(bytes) => Ok(bytes.into()),
            EtcdPem::File(path) => fs::read(path).map(Into::into).map_err(|it| self.unusable(it)),
        }
    }

    fn unusable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> EtcdConfigError {
        match self.pem.path() {
            Some(path) => unusable(path.display(), source),
            None => unusable(format!("{} that was given", self.name), source),
        }
    }
}

fn unusable(
    place: impl ToString,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EtcdConfigError {
    EtcdConfigError::Certificate { place: place.to_string(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let resolved = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "192.0.2.1:1"]);
        let expected = parse(&["[::1]:1", "192.0.2.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(alternating(resolved), expected);
        assert_eq!(alternating(Vec::new()), []);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_keeps_no_other_waiting() {
        // Nobody accepts, so that the kernel answers no more once the queue is full.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = socket.listen(1).unwrap();
        let dead = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(500), TcpStream::connect(dead)).await {
            queued.push(stream.unwrap());
        }
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().unwrap();
        let connected = timeout(CONNECT_TIMEOUT, connect_any(vec![dead, live])).await;
        assert_eq!(connected.expect("in time").unwrap().peer_addr().unwrap(), live);
        assert!(connect_any(Vec::new()).await.is_err());
    }
}
