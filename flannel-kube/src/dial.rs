//! A connection to the API server: TCP, and TLS with files that are read for each connection.

use std::{io, sync::Arc, time::Duration};

use flannel_tls::{Part, Pem, PemError};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig as TlsConfig, pki_types::ServerName},
};

use crate::{ClientConfig, config::Source, error::Reason, socket::Socket};

/// What requests go over.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Connects. The socket is that of what requests go over.
pub(crate) async fn dial(config: &ClientConfig) -> Result<(Box<dyn Io>, Socket), Reason> {
    let is_tls = config.server.scheme_str() == Some("https");
    let host = config.server.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = config.server.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tcp = step("connect", TcpStream::connect((host, port))).await?;
    let settings = keep_alive(&tcp).and_then(|()| tcp.set_nodelay(true));
    settings.map_err(|source| Reason::Connect { step: "set up the connection", source })?;
    let socket = Socket::new(tcp);
    if !is_tls {
        return Ok((Box::new(socket.clone()), socket));
    }
    let tls = Arc::new(tls_config(config)?);
    let name = config.tls_server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|error| Reason::Connect {
        step: "agree on TLS",
        source: io::Error::other(error),
    })?;
    let io = step("agree on TLS", TlsConnector::from(tls).connect(name, socket.clone())).await;
    Ok((Box::new(io.map_err(of_tls)?), socket))
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
    let authority = config.certificate_authority.as_ref().map(Source::read).transpose()?;
    let own = match &config.client_certificate {
        Some((certificate, key)) => Some((certificate.read()?, key.read()?)),
        None => None,
    };
    let own = own.as_ref().map(|(certificate, key)| (&**certificate, &**key));
    let made = Pem { authority: authority.as_deref(), own }.client_config("http/1.1");
    made.map_err(|PemError { part, source }| {
        let own = config.client_certificate.as_ref();
        let place = match part {
            Part::Authority => config.certificate_authority.as_ref(),
            Part::Certificate => own.map(|(certificate, _)| certificate),
            Part::Key => own.map(|(_, key)| key),
        };
        let place = place.map_or_else(|| "the machine's store".to_owned(), Source::place);
        Reason::Certificate { place: format!("{part} in {place}"), source }
    })
}

/// Why a handshake failed: for its certificate, perhaps.
fn of_tls(reason: Reason) -> Reason {
    let Reason::Connect { source, .. } = &reason else { return reason };
    let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls.and_then(|error| Some((flannel_tls::flaw(error)?, error))) {
        Some((flaw, error)) => Reason::ServerCertificate { flaw, source: error.clone() },
        None => reason,
    }
}

/// How long each step to a connection may take.
const STEP_LIMIT: Duration = Duration::from_secs(5);
