//! Requests and their answers.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request,
    body::{Bytes, Incoming},
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER,
        USER_AGENT,
    },
    http::request::Builder,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{
    ClientConfig, Resource,
    dial::dial,
    error::{ApiStatus, Reason, RequestError},
    exchange::Connection,
    frames::FrameKind,
    request::{Verb, with_query},
};

/// Talks to an API server. Clones share a connection for short requests; each watch has one of its own.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    idle: Mutex<Option<(Connection, Instant)>>,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// For messages.
    pub(crate) object: String,
    pub(crate) path: String,
    pub(crate) accept: &'static str,
    pub(crate) body: Option<(&'static str, String)>,
}

/// An answer that is being received. Dropping it closes the connection.
pub(crate) struct Answer {
    client: Client,
    call: Call,
    connection: Connection,
    body: Incoming,
    /// What it consists of, if it is the stream of a watch.
    pub(crate) frames: FrameKind,
    /// When something came last.
    heard: Instant,
}

impl Client {
    /// A client that connects when it is asked for something.
    pub fn new(config: ClientConfig) -> Self {
        Self { shared: Arc::new(Shared { config, idle: Mutex::default() }) }
    }

    /// Where it connects to.
    pub fn server(&self) -> String {
        self.shared.config.server.to_string()
    }

    /// Reads the object called `name`, as JSON.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub async fn get(&self, resource: &Resource, name: &str) -> Result<Vec<u8>, RequestError> {
        let call = Call {
            verb: Verb::Get,
            object: format!("{resource}/{name}"),
            path: resource.path(Some(name), None),
            accept: JSON,
            body: None,
        };
        self.short(call).await
    }

    /// What is at `path` below the object called `name`, such as a pod's log, in whatever form that is.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub async fn get_part(
        &self,
        resource: &Resource,
        name: &str,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Vec<u8>, RequestError> {
        let below = path.iter().map(|part| format!("/{part}")).collect::<String>();
        let call = Call {
            verb: Verb::Get,
            object: format!("{resource}/{name}{below}"),
            path: with_query(&resource.below(name, path), query),
            accept: "*/*",
            body: None,
        };
        self.short(call).await
    }

    /// Deletes the object called `name`.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub async fn delete(&self, resource: &Resource, name: &str) -> Result<(), RequestError> {
        let call = Call {
            verb: Verb::Delete,
            object: format!("{resource}/{name}"),
            path: resource.path(Some(name), None),
            accept: JSON,
            // Without a grace period: what we delete needs none to shut down.
            body: Some((JSON, r#"{"gracePeriodSeconds":0}"#.into())),
        };
        self.short(call).await.map(drop)
    }

    /// Creates an object, and returns it as the API server has it.
    ///
    /// # Errors
    ///
    /// [`RequestError`]. A conflict may be with an earlier attempt of the same call whose answer was lost.
    pub async fn create(
        &self,
        resource: &Resource,
        object: String,
    ) -> Result<Vec<u8>, RequestError> {
        let call = Call {
            verb: Verb::Create,
            object: resource.to_string(),
            path: resource.path(None, None),
            accept: JSON,
            body: Some((JSON, object)),
        };
        self.short(call).await
    }

    /// Changes what a strategic merge patch names in a part of the object called `name`, such as its `status`, and returns the
    /// object.
    ///
    /// # Errors
    ///
    /// [`RequestError`].
    pub async fn patch(
        &self,
        resource: &Resource,
        name: &str,
        part: Option<&str>,
        patch: String,
    ) -> Result<Vec<u8>, RequestError> {
        let of_part = part.map(|part| format!("/{part}")).unwrap_or_default();
        let call = Call {
            verb: Verb::Patch,
            object: format!("{resource}/{name}{of_part}"),
            path: resource.path(Some(name), part),
            accept: JSON,
            body: Some((STRATEGIC_MERGE, patch)),
        };
        self.short(call).await
    }

    /// A request with a short answer. A server that is busy and says for how long is asked again then, a few times.
    async fn short(&self, call: Call) -> Result<Vec<u8>, RequestError> {
        let mut attempts = 0;
        loop {
            let error = match self.once(call.clone()).await {
                Err(error) => error,
                answer => return answer,
            };
            let pause = error.retry_after().filter(|pause| *pause <= LONGEST_PAUSE);
            attempts += 1;
            match pause.filter(|_| attempts < ATTEMPTS) {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    async fn once(&self, call: Call) -> Result<Vec<u8>, RequestError> {
        let mut answer = self.open(call).await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk(QUIET_LIMIT).await? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_OBJECT {
                return Err(answer.failed(Reason::Oversized { limit: LONGEST_OBJECT }));
            }
        }
        answer.finish();
        Ok(body)
    }

    /// Sends a request and waits for the head of its answer, which is good.
    pub(crate) async fn open(&self, call: Call) -> Result<Answer, RequestError> {
        // A connection that was idle may have been closed unseen: then it is another try's turn.
        if let Some(connection) = self.take_idle() {
            match self.over(connection, &call).await {
                Err(Reason::Broken(_) | Reason::Late { .. }) => {}
                outcome => return outcome.map_err(|reason| self.error(&call, reason)),
            }
        }
        let connected = async {
            let dialled = dial(&self.shared.config).await?;
            let connection = Connection::new(dialled).await.map_err(Reason::Broken)?;
            self.over(connection, &call).await
        };
        connected.await.map_err(|reason| self.error(&call, reason))
    }

    async fn over(&self, mut connection: Connection, call: &Call) -> Result<Answer, Reason> {
        let request = self.request(call)?;
        let head = timeout(HEAD_LIMIT, connection.send(request)).await;
        let late = |_| Reason::Late { step: "get an answer", limit: HEAD_LIMIT };
        let (head, body) = head.map_err(late)?.map_err(Reason::Broken)?.into_parts();
        let client = self.clone();
        let heard = Instant::now();
        let frames = match head.headers.get(CONTENT_TYPE) {
            Some(kind) if kind.as_bytes().starts_with(PROTOBUF.as_bytes()) => FrameKind::Protobuf,
            _ => FrameKind::Json,
        };
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|it| *it != "identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            return Err(Reason::Encoded { encoding });
        }
        let mut answer = Answer { client, call: call.clone(), connection, body, frames, heard };
        if head.status.is_success() {
            return Ok(answer);
        }
        let mut said = Vec::new();
        while said.len() < LONGEST_REFUSAL
            && let Ok(Some(chunk)) = answer.chunk(QUIET_LIMIT).await
        {
            said.extend_from_slice(&chunk);
        }
        let pause = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let pause = pause.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        Err(Reason::Status(ApiStatus::of_answer(head.status.as_u16(), &said, pause)))
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, Reason> {
        let config = &self.shared.config;
        let prefix = config.server.path().trim_end_matches('/');
        let authority = config.server.authority().map_or("", |authority| authority.as_str());
        let mut request: Builder = Request::builder()
            .method(call.verb.method())
            .uri(format!("{prefix}{}", call.path))
            .header(HOST, authority)
            .header(USER_AGENT, &config.user_agent)
            .header(ACCEPT, call.accept);
        if let Some(token) = config.credentials.token()? {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
                    Reason::Certificate {
                        place: "the token".into(),
                        source: "it has characters that no token has".into(),
                    }
                })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let mut body = String::new();
        if let Some((kind, text)) = &call.body {
            request = request.header(CONTENT_TYPE, *kind);
            body.clone_from(text);
        }
        request.body(Full::from(body)).map_err(Reason::Request)
    }

    fn error(&self, call: &Call, reason: Reason) -> RequestError {
        let config = &self.shared.config;
        let subject = config.credentials.token().ok().flatten().and_then(|token| token.subject());
        RequestError {
            verb: call.verb,
            object: call.object.clone(),
            server: self.server(),
            account: subject.or_else(|| config.user.clone()),
            reason,
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (connection, since) = idle?;
        (since.elapsed() < LONGEST_IDLE && connection.is_open()).then_some(connection)
    }
}

impl Answer {
    /// The next bytes, which come within `limit` after those before; `None` at the end.
    pub(crate) async fn chunk(&mut self, limit: Duration) -> Result<Option<Bytes>, RequestError> {
        match timeout_at(self.heard + limit, self.connection.chunk(&mut self.body)).await {
            Ok(Some(Ok(bytes))) => {
                self.heard = Instant::now();
                Ok(Some(bytes))
            }
            Ok(Some(Err(error))) => Err(self.failed(Reason::Broken(error))),
            Ok(None) => Ok(None),
            Err(_) => Err(self.failed(Reason::Silent { after: limit })),
        }
    }

    /// Lets nothing that comes wake anybody until the next chunk is waited for.
    pub(crate) fn rest(&self) {
        self.connection.rest();
    }

    pub(crate) fn failed(&self, reason: Reason) -> RequestError {
        self.client.error(&self.call, reason)
    }

    /// Keeps the connection for another request: the answer was received to its end.
    pub(crate) fn finish(self) {
        if self.connection.is_open() {
            let idle = Some((self.connection, Instant::now()));
            *self.client.shared.idle.lock().unwrap_or_else(PoisonError::into_inner) = idle;
        }
    }
}

impl Call {
    /// A request that reads all objects, or follows them.
    pub(crate) fn all(resource: &Resource, verb: Verb, query: &[(&str, &str)]) -> Self {
        let selectors = resource.selectors();
        let mut query = query.to_vec();
        query.extend(selectors.iter().map(|(key, value)| (*key, value.as_str())));
        Self {
            verb,
            object: resource.to_string(),
            path: with_query(&resource.path(None, None), &query),
            accept: JSON,
            body: None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// An etcd stores at most 1.5 MiB in a key; the rest is room for what the API server adds.
pub(crate) const LONGEST_OBJECT: usize = 8 * 1024 * 1024;
/// How much of a refusal is read.
const LONGEST_REFUSAL: usize = 64 * 1024;
/// How long the head of an answer may take. Lists of large clusters take their time.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// How long a short answer may pause.
pub(crate) const QUIET_LIMIT: Duration = Duration::from_secs(15);
/// After that a load balancer may have forgotten a connection.
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// How often a busy server is asked, and how long it may want to be left alone in between.
const ATTEMPTS: u32 = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
