//! Calls to whichever member answers.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{TryFutureExt, future::Future};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataValue},
};
use tracing::{debug, warn};

use crate::{
    etcd::{
        config::{Endpoint, EtcdConfig, EtcdConfigError},
        dial::TlsFiles,
        proto::AuthenticateRequest,
        session::{Refusal, Rpc, Session},
        trouble::{Trouble, Troubles},
    },
    registry::RegistryError,
};

/// A cluster's members, of which one is connected to at a time.
#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    files: TlsFiles,
    login: Option<AuthenticateRequest>,
    prefix: String,
    current: tokio::sync::Mutex<Current>,
    token: Mutex<Token>,
}

#[derive(Debug)]
struct Current {
    session: Option<Arc<Session>>,
    /// The endpoint that is connected, or is to be tried first.
    endpoint: usize,
}

#[derive(Clone, Debug)]
enum Token {
    /// The cluster has no users.
    Needless,
    Unknown,
    Valid(MetadataValue<Ascii>),
}

/// What etcd answers.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: T,
    /// Whether it was asked more than once, so that it may have done before what was asked.
    pub(super) repeated: bool,
}

/// Why there is no such answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It answers that the request makes no sense.
    Answer(Endpoint, Status),
    /// No endpoint was of use.
    Troubles(Troubles),
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        let endpoints = config.parse_endpoints()?;
        let files = TlsFiles::new(config);
        if endpoints.iter().any(|endpoint| endpoint.tls) {
            // Wrong files are better known now than when the first connection fails.
            files.load()?;
        }
        let login =
            config.username.clone().zip(config.password.as_ref()).map(|(name, password)| {
                AuthenticateRequest { name, password: password.as_str().into() }
            });
        if let Some(open) = endpoints.iter().find(|endpoint| !endpoint.tls && login.is_some()) {
            warn!(endpoint = %open, "the password for etcd is sent without TLS");
        }
        // Many nodes have the same list, and not all of them should burden its first member.
        let random = RandomState::new().build_hasher().finish();
        let endpoint = (random % endpoints.len() as u64) as usize;
        Ok(Self {
            endpoints,
            files,
            login,
            prefix: config.prefix.clone(),
            current: tokio::sync::Mutex::new(Current { session: None, endpoint }),
            token: Mutex::new(Token::Unknown),
        })
    }

    /// Makes a call, on other members too if need be. It ends within [`PATIENCE`].
    pub(super) async fn call<T, F>(&self, rpc: impl Fn(Rpc) -> F) -> Result<Answer<T>, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut troubles = Troubles::default();
        let (mut attempts, mut repeated, mut logged_in_again) = (0, false, false);
        loop {
            let Some(session) = self.session(deadline, &mut troubles).await else {
                return Err(Failure::Troubles(troubles));
            };
            let refusal = match self.attempt(&session, deadline, &rpc).await {
                Ok(value) => return Ok(Answer { value, repeated }),
                Err(refusal) => refusal,
            };
            let trouble = match refusal {
                Refusal::Answer(status) => {
                    return Err(Failure::Answer(session.endpoint.clone(), status));
                }
                Refusal::Token if !logged_in_again => {
                    self.forget_token();
                    logged_in_again = true;
                    continue;
                }
                Refusal::Token => {
                    let reason = "a login that it has just given is not valid".into();
                    Trouble::Refused { endpoint: session.endpoint.clone(), reason }
                }
                Refusal::Trouble(trouble) => trouble,
            };
            debug!(%trouble, "a call to etcd failed");
            let everywhere = trouble.is_everywhere();
            if !everywhere {
                self.give_up(&session).await;
            }
            troubles.add(trouble);
            attempts += 1;
            // One more than there are members: the first connection may have been an old one.
            if everywhere || attempts > self.endpoints.len() || Instant::now() >= deadline {
                return Err(Failure::Troubles(troubles));
            }
            repeated = true;
        }
    }

    /// Makes a call on a session that stays in use, and has the session.
    ///
    /// The first attempt at it: whoever follows a stream lists anew when it fails, and that finds another member.
    pub(super) async fn call_once<T, F>(
        &self,
        rpc: impl Fn(Rpc) -> F,
    ) -> Result<(T, Arc<Session>), (Option<Arc<Session>>, Refusal)>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut troubles = Troubles::default();
        let Some(session) = self.session(deadline, &mut troubles).await else {
            let last = troubles.last().expect("there is an endpoint, and it was tried");
            return Err((None, Refusal::Trouble(last)));
        };
        match self.attempt(&session, deadline, &rpc).await {
            Ok(value) => Ok((value, session)),
            Err(refusal) => Err((Some(session), refusal)),
        }
    }

    /// What a status means that `session` had.
    pub(super) fn refusal(&self, session: &Session, status: Status) -> Refusal {
        session.refusal(status, self.user(), &self.prefix)
    }

    /// Uses another member from now on, if it is still `session` that is used.
    pub(super) async fn give_up(&self, session: &Arc<Session>) {
        let mut current = self.current.lock().await;
        if current.session.as_ref().is_some_and(|used| Arc::ptr_eq(used, session)) {
            current.session = None;
            current.endpoint = (current.endpoint + 1) % self.endpoints.len();
        }
    }

    /// Logs in anew for the next call.
    pub(super) fn forget_token(&self) {
        *self.token.lock().expect("nothing panics while it is locked") = Token::Unknown;
    }

    async fn attempt<T, F>(
        &self,
        session: &Session,
        deadline: Instant,
        rpc: impl Fn(Rpc) -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let token = self.token(session, deadline).await?;
        self.in_time(session, deadline, rpc(session.rpc(token))).await
    }

    async fn in_time<T>(
        &self,
        session: &Session,
        deadline: Instant,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Refusal> {
        let start = Instant::now();
        let Ok(answer) = timeout_at(deadline.min(start + ANSWER_TIMEOUT), answer).await else {
            let (endpoint, patience) = (session.endpoint.clone(), rounded(start.elapsed()));
            return Err(Refusal::Trouble(Trouble::Silent { endpoint, patience }));
        };
        let value = answer.map_err(|status| self.refusal(session, status))?;
        session.has_answered();
        Ok(value)
    }

    /// The token to show, for which it logs in if there is none.
    async fn token(
        &self,
        session: &Session,
        deadline: Instant,
    ) -> Result<Option<MetadataValue<Ascii>>, Refusal> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        let known = self.token.lock().expect("nothing panics while it is locked").clone();
        match known {
            Token::Needless => return Ok(None),
            Token::Valid(token) => return Ok(Some(token)),
            Token::Unknown => {}
        }
        let answer = session.rpc(None).authenticate(login.clone());
        let token = match self.in_time(session, deadline, answer).await {
            Ok(answer) => match answer.token.parse() {
                Ok(token) => Token::Valid(token),
                Err(_) => Token::Unknown,
            },
            Err(Refusal::Answer(status)) if status.code() == Code::FailedPrecondition => {
                warn!(endpoint = %session.endpoint, "etcd has no users, going on without a login");
                Token::Needless
            }
            Err(refusal) => return Err(refusal),
        };
        *self.token.lock().expect("nothing panics while it is locked") = token.clone();
        match token {
            Token::Valid(token) => Ok(Some(token)),
            _ => Ok(None),
        }
    }

    /// The connection in use, or a new one to the next endpoint that takes it. If there is none, the troubles say why.
    async fn session(&self, deadline: Instant, troubles: &mut Troubles) -> Option<Arc<Session>> {
        let out_of_time = |endpoint: usize| {
            let endpoint = self.endpoints[endpoint].clone();
            Trouble::Silent { endpoint, patience: PATIENCE }
        };
        let Ok(mut current) = timeout_at(deadline, self.current.lock()).await else {
            // Others are trying all the time.
            troubles.add(out_of_time(0));
            return None;
        };
        if let Some(session) = &current.session {
            return Some(Arc::clone(session));
        }
        for _ in &self.endpoints {
            if Instant::now() >= deadline {
                troubles.add(out_of_time(current.endpoint));
                return None;
            }
            let endpoint = &self.endpoints[current.endpoint];
            let silent =
                |_| Trouble::Silent { endpoint: endpoint.clone(), patience: CONNECT_TIMEOUT };
            let opened = timeout(CONNECT_TIMEOUT, Session::open(endpoint, &self.files));
            match opened.map_err(silent).await.flatten() {
                Ok(session) => {
                    debug!(%endpoint, "connected to etcd");
                    let session = Arc::new(session);
                    current.session = Some(Arc::clone(&session));
                    return Some(session);
                }
                Err(trouble) => {
                    debug!(%trouble, "cannot connect to etcd");
                    troubles.add(trouble);
                    current.endpoint = (current.endpoint + 1) % self.endpoints.len();
                }
            }
        }
        None
    }

    fn user(&self) -> Option<&str> {
        self.login.as_ref().map(|login| login.name.as_str())
    }
}

impl Failure {
    /// The error of `operation`.
    pub(super) fn of(self, operation: impl Into<String>) -> RegistryError {
        match self {
            Self::Answer(endpoint, status) => {
                let reason = status.message().to_owned();
                Troubles::from(Trouble::Refused { endpoint, reason }).of(operation)
            }
            Self::Troubles(troubles) => troubles.of(operation),
        }
    }

    /// Whether etcd answers with `code`.
    pub(super) fn is(&self, code: Code) -> bool {
        matches!(self, Self::Answer(_, status) if status.code() == code)
    }
}

fn rounded(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs_f64().round() as u64)
}

/// How long an endpoint may take to be connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a member may take to answer. An election takes one to two seconds with etcd's defaults, and etcd's own limit for
/// a request is seven.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take with all its attempts: those at three members that hang.
const PATIENCE: Duration = Duration::from_secs(20);
