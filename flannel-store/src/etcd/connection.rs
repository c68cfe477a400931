//! One connection to one member, and the calls that are made on it.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flannel_core::error_chain;
use futures::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::sync::oneshot;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::etcd::{
    config::Endpoint,
    dial::{CONNECT_TIMEOUT, FirstError, TlsSources, dial, step},
    endpoint_error::EndpointError,
    proto::{
        AuthenticateRequest, AuthenticateResponse, LeaseGrantRequest, LeaseGrantResponse,
        LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
    },
};

/// A connection that is used until it fails, and never made again.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) endpoint: Endpoint,
    channel: Channel,
    first_error: FirstError,
    /// Whether anything was ever heard on it.
    answered: AtomicBool,
}

/// Why a call to etcd failed.
#[derive(Debug)]
pub(super) enum RpcError {
    /// It is an answer, for the caller to make something of.
    Answer(Status),
    /// The token is unknown, or too old.
    Token,
    /// This endpoint is of no use.
    EndpointError(EndpointError),
}

impl Connection {
    pub(super) async fn open(
        endpoint: &Endpoint,
        files: &TlsSources,
    ) -> Result<Self, EndpointError> {
        let mut line = dial(endpoint, files).await?;
        let (first_byte, first_error) = (line.first_byte(), line.first_error());
        let mut line = Some(line);
        let connect = service_fn(move |_| {
            let line = line.take().map(TokioIo::new);
            async { line.ok_or_else(|| io::Error::other("the connection has ended")) }
        });
        // TLS is dealt with below HTTP/2, so that the scheme says nothing here.
        let authority = endpoint.to_string().replacen("https", "http", 1);
        let http2 = Channel::from_shared(authority)
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(|reason| EndpointError::Unreachable { endpoint: endpoint.clone(), reason })?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let opening = http2.connect_with_connector(connect);
        let channel = step(endpoint, "open HTTP/2", CONNECT_TIMEOUT, opening).await?;
        let endpoint = endpoint.clone();
        let channel = match channel {
            Ok(channel) => channel,
            Err(error) => return Err(broken(endpoint, &first_error, false, error_chain(&error))),
        };
        // HTTP/2 begins with what the other side wants, also when nothing is asked. A member that hangs does not say it, and
        // one that does not like our certificate says that instead.
        if step(&endpoint, "begin HTTP/2", CONNECT_TIMEOUT, first_byte).await?.is_err() {
            return Err(broken(endpoint, &first_error, false, "it hung up".into()));
        }
        Ok(Self { endpoint, channel, first_error, answered: AtomicBool::new(false) })
    }

    pub(super) fn rpc(&self, token: Option<MetadataValue<Ascii>>) -> Rpc {
        let grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        Rpc { grpc, token }
    }

    /// Notes that the other side is alive and speaks our language.
    pub(super) fn has_answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// What `status` means, asked for by `user` to work below `prefix`.
    pub(super) fn rpc_error(&self, status: Status, user: Option<&str>, prefix: &str) -> RpcError {
        let endpoint = self.endpoint.clone();
        let reason = status.message().to_owned();
        let says = |text: &str| reason.contains(text);
        if std::error::Error::source(&status).is_some() || !says("etcdserver:") {
            return self.local(status);
        }
        self.has_answered();
        RpcError::EndpointError(match (status.code(), user) {
            (Code::Unauthenticated, Some(_)) => return RpcError::Token,
            (Code::Unauthenticated, None) => EndpointError::Anonymous { endpoint },
            (Code::InvalidArgument, Some(user)) if says("authentication failed") => {
                EndpointError::Credentials { endpoint, user: user.into() }
            }
            (Code::InvalidArgument, Some(_))
                if says("user name is empty") || says("revision of auth") =>
            {
                return RpcError::Token;
            }
            (Code::InvalidArgument, None) if says("user name is empty") => {
                EndpointError::Anonymous { endpoint }
            }
            (Code::PermissionDenied, user) => {
                let user = user.map_or_else(|| "us".into(), |user| format!("the user {user}"));
                EndpointError::Permission { endpoint, user, reason, prefix: prefix.into() }
            }
            (Code::ResourceExhausted, _) if says("database space exceeded") => {
                EndpointError::Full { endpoint, reason }
            }
            (
                Code::FailedPrecondition
                | Code::InvalidArgument
                | Code::NotFound
                | Code::OutOfRange,
                _,
            ) => {
                return RpcError::Answer(status);
            }
            _ => EndpointError::Refused { endpoint, reason },
        })
    }

    /// What an error means that did not come from etcd.
    fn local(&self, status: Status) -> RpcError {
        if status.code() == Code::OutOfRange {
            return RpcError::Answer(status);
        }
        let has_answered = self.answered.load(Ordering::Relaxed);
        let reason = reasons(&status);
        RpcError::EndpointError(broken(
            self.endpoint.clone(),
            &self.first_error,
            has_answered,
            reason,
        ))
    }
}

/// Why a connection broke, as far as is known.
fn broken(
    endpoint: Endpoint,
    first_error: &FirstError,
    has_answered: bool,
    reason: String,
) -> EndpointError {
    let first_error = first_error.get().map(|error| EndpointError::of_tls(endpoint.clone(), error));
    match first_error {
        Some(error @ EndpointError::ClientCertificate { .. }) => error,
        _ if endpoint.tls || has_answered => EndpointError::Broken { endpoint, reason },
        _ => EndpointError::NotPlain { endpoint, reason },
    }
}

/// The calls, each of which goes to this member once.
pub(super) struct Rpc {
    grpc: Grpc<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

/// A watch that goes on.
pub(super) struct WatchStream {
    answers: Streaming<WatchResponse>,
    /// Keeps our direction open, and with it the watch: HTTP/2 resets a stream when both directions are dropped.
    _open: oneshot::Sender<()>,
}

impl WatchStream {
    /// The next thing that etcd says; `None` if it ends the watch.
    pub(super) async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        self.answers.message().await
    }
}

impl Rpc {
    pub(super) async fn authenticate(
        self,
        request: AuthenticateRequest,
    ) -> Result<AuthenticateResponse, Status> {
        self.unary("/etcdserverpb.Auth/Authenticate", request).await
    }

    pub(super) async fn grant(
        self,
        request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseGrant", request).await
    }

    /// Renews a lease once. etcd has this as a stream only.
    pub(super) async fn keep_alive(
        self,
        request: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        let requests = stream::iter([request]);
        let mut answers = self.stream("/etcdserverpb.Lease/LeaseKeepAlive", requests).await?;
        let ended = || Status::unavailable("etcdserver: no answer to a keep-alive");
        answers.message().await?.ok_or_else(ended)
    }

    pub(super) async fn range(self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.unary("/etcdserverpb.KV/Range", request).await
    }

    pub(super) async fn revoke(
        self,
        request: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Status> {
        self.unary("/etcdserverpb.Lease/LeaseRevoke", request).await
    }

    pub(super) async fn txn(self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.unary("/etcdserverpb.KV/Txn", request).await
    }

    /// Follows changes until the result is dropped.
    pub(super) async fn watch(self, request: WatchRequest) -> Result<WatchStream, Status> {
        let (open, dropped) = oneshot::channel();
        let requests = stream::iter([request]).chain(stream::pending().take_until(dropped));
        let answers = self.stream("/etcdserverpb.Watch/Watch", requests).await?;
        Ok(WatchStream { answers, _open: open })
    }

    async fn unary<M, A>(mut self, path: &'static str, message: M) -> Result<A, Status>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let request = self.request(message);
        let path = PathAndQuery::from_static(path);
        Ok(self.grpc.unary(request, path, ProstCodec::default()).await?.into_inner())
    }

    async fn stream<M, A>(
        mut self,
        path: &'static str,
        messages: impl Stream<Item = M> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let request = self.request(messages);
        let path = PathAndQuery::from_static(path);
        Ok(self.grpc.streaming(request, path, ProstCodec::default()).await?.into_inner())
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        // A member that has lost its leader then says so instead of keeping us waiting.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// What went wrong below etcd, without the repetitions of the layers.
fn reasons(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => error_chain(source),
        None => status.message().into(),
    }
}

/// How long nothing may be heard on a connection in use before the other side is asked for a sign of life. etcd ends
/// connections that ask more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(6);

/// How long that sign may take. With the interval this is how soon a watch notices that a member hangs.
const PING_TIMEOUT: Duration = Duration::from_secs(4);

/// The longest answer that is read. etcd takes requests of up to 1.5 MiB unless told otherwise, so that each value fits.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// How much may be on its way to us, so that a page does not wait for acknowledgements.
const WINDOW: u32 = 1 << 20;
