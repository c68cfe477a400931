//! A connection to the API server: TCP, and TLS with files that are read for each connection.

use std::{io, sync::Arc, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig as TlsConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::{ClientConfig, config::Source, error::Reason};

/// What requests go over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects.
pub(crate) async fn dial(config: &ClientConfig) -> Result<Box<dyn Io>, Reason> {
    let is_tls = config.server.scheme_str() == Some("https");
    let host = config.server.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = config.server.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tcp = step("connect", TcpStream::connect((host, port))).await?;
    let settings = keep_alive(&tcp).and_then(|()| tcp.set_nodelay(true));
    settings.map_err(|source| Reason::Connect { step: "set up the connection", source })?;
    if !is_tls {
        return Ok(Box::new(tcp));
    }
    let tls = Arc::new(tls_config(config)?);
    let name = config.tls_server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|error| Reason::Connect {
        step: "agree on TLS",
        source: io::Error::other(error),
    })?;
    let io = step("agree on TLS", TlsConnector::from(tls).connect(name, tcp)).await?;
    Ok(Box::new(io))
}

async fn step<T>(
    step: &'static str,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Reason> {
    match timeout(STEP_LIMIT, work).await {
        Ok(result) => result.map_err(|source| Reason::Connect { step, source }),
        Err(_) => Err(Reason::Late { step, limit: STEP_LIMIT }),
    }
}

/// Lets the kernel find out that the other side is not there any more: a machine that lost its power says nothing.
fn keep_alive(tcp: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(tcp, 3)?;
    sockopt::set_tcp_user_timeout(tcp, 30_000)?;
    Ok(())
}

fn tls_config(config: &ClientConfig) -> Result<TlsConfig, Reason> {
    let mut roots = RootCertStore::empty();
    match &config.certificate_authority {
        Some(source) => {
            for certificate in certificates(source)? {
                roots.add(certificate).map_err(|error| unusable(source, error))?;
            }
        }
        None => {
            let native = rustls_native_certs::load_native_certs().certs;
            roots.add_parsable_certificates(native);
        }
    }
    let builder = TlsConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let mut tls = match &config.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_slice(&key.read()?)
                .map_err(|error| unusable(key, format!("no private key: {error}")))?;
            let builder = builder.with_client_auth_cert(chain, secret);
            builder.map_err(|error| unusable(certificate, error))?
        }
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn certificates(source: &Source) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&source.read()?).collect();
    match all {
        Ok(all) if all.is_empty() => Err(unusable(source, "no certificate in it")),
        Ok(all) => Ok(all),
        Err(error) => Err(unusable(source, error)),
    }
}

fn unusable(source: &Source, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Reason {
    Reason::Certificate { place: source.place(), source: error.into() }
}

/// How long each step to a connection may take.
const STEP_LIMIT: Duration = Duration::from_secs(5);
