//! A connection to one member: TCP, and TLS with files that are read for each connection.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::etcd::{
    config::{Endpoint, EtcdConfig, EtcdConfigError},
    endpoint_error::EndpointError,
};

/// The files of TLS. They are read again for each connection, so that renewed ones are used from the next one on.
#[derive(Clone, Debug)]
pub(super) struct TlsFiles {
    ca: Option<PathBuf>,
    /// Certificate and key.
    own: Option<(PathBuf, PathBuf)>,
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

impl TlsFiles {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        Self {
            ca: config.ca_file.clone(),
            own: config.cert_file.clone().zip(config.key_file.clone()),
        }
    }

    /// Reads the files.
    pub(super) fn load(&self) -> Result<ClientConfig, EtcdConfigError> {
        let mut roots = RootCertStore::empty();
        match &self.ca {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unusable(path, error))?;
                }
            }
            // What cannot be read of the machine's own is no more than one signer less.
            None => drop(
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
            ),
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
                    .map_err(|error| unusable(key, format!("it holds no private key: {error}")))?;
                let builder = builder.with_client_auth_cert(chain, secret);
                builder.map_err(|error| unusable(certificate, error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

/// Connects to `endpoint`, with `files` if it wants TLS.
pub(super) async fn dial(
    endpoint: &Endpoint,
    files: &TlsFiles,
) -> Result<MemberStream, EndpointError> {
    let unreachable = |reason| EndpointError::Unreachable { endpoint: endpoint.clone(), reason };
    let tcp = TcpStream::connect((&*endpoint.host, endpoint.port)).await.map_err(unreachable)?;
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
    let io = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(tls)?;
    Ok(MemberStream::new(io))
}

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

fn read(path: &Path) -> Result<Vec<u8>, EtcdConfigError> {
    fs::read(path).map_err(|error| unusable(path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EtcdConfigError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match all {
        Ok(all) if all.is_empty() => Err(unusable(path, "it holds no certificate")),
        Ok(all) => Ok(all),
        Err(error) => Err(unusable(path, error)),
    }
}

fn unusable(
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> EtcdConfigError {
    EtcdConfigError::Certificate { path: path.into(), source: source.into() }
}
