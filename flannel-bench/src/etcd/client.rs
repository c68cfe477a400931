//! The plainest client that can read and write: the messages that are needed and nothing else.
//!
//! Mirrors api/etcdserverpb/rpc.proto and api/mvccpb/kv.proto of etcd 3.4 to 3.6, where these fields are the same.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use flannel_netlink::Namespace;
use hyper_util::rt::TokioIo;
use prost::{Message, Oneof};
use tokio::{net::TcpStream, time::Instant};
use tonic::{
    Request, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// A connection to one member.
#[derive(Clone, Debug)]
pub(crate) struct Client(Channel);

/// Hears of writes.
#[derive(Debug)]
pub(crate) struct Watch(Streaming<WatchResponse>);

impl Client {
    /// Connects from inside a namespace.
    pub(crate) async fn connect(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        // The socket stays in the namespace in which it was opened.
        let connected = namespace.run(|| std::net::TcpStream::connect_timeout(&to, PATIENCE))?;
        let line = connected.and_then(|line| {
            line.set_nodelay(true)?;
            line.set_nonblocking(true)?;
            TcpStream::from_std(line)
        });
        let mut line = Some(line.with_context(|| format!("cannot connect to {to}"))?);
        let connect = service_fn(move |_| {
            let line = line.take().map(TokioIo::new);
            async { line.ok_or_else(|| io::Error::other("the connection has ended")) }
        });
        let endpoint = Endpoint::from_shared(format!("http://{to}"))?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let channel = endpoint.connect_with_connector(connect).await;
        Ok(Self(channel.with_context(|| format!("cannot speak to etcd at {to}"))?))
    }

    /// Reads all keys from `key` up to `end`, page by page, and does nothing with them. How many there were, and the
    /// revision.
    pub(crate) async fn read(&self, key: &str, end: &str) -> Result<(usize, i64)> {
        let (mut key, mut revision, mut count) = (Vec::from(key), 0, 0);
        loop {
            let request = RangeRequest { key, range_end: end.into(), limit: PAGE, revision };
            let page: RangeResponse = self.unary("/etcdserverpb.KV/Range", request).await?;
            revision = page.header.unwrap_or_default().revision;
            count += page.kvs.len();
            match page.kvs.into_iter().last() {
                Some(last) if page.more => {
                    key = last.key;
                    key.push(0);
                }
                _ => return Ok((count, revision)),
            }
        }
    }

    /// Writes and removes, all at once.
    pub(crate) async fn write(&self, puts: &[Put], removed: &[String]) -> Result<()> {
        let put = |put: &Put| {
            Op::Put(PutRequest {
                key: put.key.clone().into(),
                value: put.value.clone().into(),
                lease: put.lease,
            })
        };
        let delete = |key: &String| Op::Delete(DeleteRequest { key: key.clone().into() });
        let success = puts.iter().map(put).chain(removed.iter().map(delete));
        let success = success.map(|op| RequestOp { op: Some(op) }).collect();
        let _: Nothing = self.unary("/etcdserverpb.KV/Txn", TxnRequest { success }).await?;
        Ok(())
    }

    /// An etcd lease that lasts for `ttl`.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64> {
        let request = GrantRequest { ttl: ttl.as_secs().cast_signed() };
        let granted: GrantResponse = self.unary("/etcdserverpb.Lease/LeaseGrant", request).await?;
        Ok(granted.id)
    }

    /// Hears of writes from `key` up to `end` that come after `revision`.
    pub(crate) async fn watch(&self, key: &str, end: &str, revision: i64) -> Result<Watch> {
        let (key, range_end) = (key.into(), end.into());
        let create = WatchCreateRequest { key, range_end, start_revision: revision + 1 };
        let request = WatchRequest { create: Some(create) };
        let requests =
            futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
        let mut grpc = self.grpc().await?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let answers = grpc.streaming(Request::new(requests), path, ProstCodec::default()).await;
        let mut answers = answers.context("cannot follow etcd")?.into_inner();
        // It says first that it has begun.
        answers.message().await?.context("etcd ended the watch at once")?;
        Ok(Watch(answers))
    }

    async fn unary<M, A>(&self, path: &'static str, message: M) -> Result<A>
    where
        M: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc().await?;
        let request = Request::new(message);
        let uri = PathAndQuery::from_static(path);
        let answer = grpc.unary(request, uri, ProstCodec::default()).await;
        Ok(answer.with_context(|| format!("etcd failed in {path}"))?.into_inner())
    }

    async fn grpc(&self) -> Result<Grpc<Channel>> {
        let mut grpc = Grpc::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
        grpc.ready().await.context("etcd is gone")?;
        Ok(grpc)
    }
}

impl Watch {
    /// Waits for a write, and says when it was heard of.
    pub(crate) async fn written(&mut self) -> Result<Instant> {
        loop {
            let answer = self.0.message().await.context("cannot follow etcd")?;
            let at = Instant::now();
            let answer = answer.context("etcd ended the watch")?;
            if answer.events.iter().any(|event| event.kind == PUT) {
                return Ok(at);
            }
        }
    }
}

/// A key to be written.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) key: String,
    pub(crate) value: String,
    /// The etcd lease; 0 for a key that stays.
    pub(crate) lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseHeader {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
    #[prost(int64, tag = "6")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    limit: i64,
    #[prost(int64, tag = "4")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    more: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(int64, tag = "3")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(oneof = "Op", tags = "2, 3")]
    op: Option<Op>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Op {
    #[prost(message, tag = "2")]
    Put(PutRequest),
    #[prost(message, tag = "3")]
    Delete(DeleteRequest),
}

#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

/// An answer of which nothing is of interest.
#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct GrantRequest {
    /// Seconds.
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(int32, tag = "1")]
    kind: i32,
}

const PUT: i32 = 0;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(5);

/// Entries per page. With fewer it takes longer, because etcd walks the keys of all further pages for each.
const PAGE: i64 = 16 * 1024;

/// More than a page has.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much may be on its way to us, so that a page does not wait for acknowledgements.
const WINDOW: u32 = 1 << 20;
