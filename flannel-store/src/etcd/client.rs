//! Calls to whichever member answers.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::Future;
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataValue},
};
use tracing::{debug, warn};

use crate::{
    etcd::{
        config::{Endpoint, EtcdConfig, EtcdConfigError},
        connection::{Connection, Rpc, RpcError},
        dial::TlsSources,
        endpoint_error::{EndpointError, EndpointErrors},
        proto::AuthenticateRequest,
    },
    registry::RegistryError,
};

/// A cluster's members, of which one is connected to at a time.
#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    files: TlsSources,
    login: Option<AuthenticateRequest>,
    prefix: String,
    current: tokio::sync::Mutex<Current>,
    token: Mutex<Token>,
}

#[derive(Debug)]
struct Current {
    connection: Option<Arc<Connection>>,
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
pub(super) enum CallError {
    /// It answers that the request makes no sense.
    Answer(Endpoint, Status),
    /// No endpoint was of use.
    EndpointErrors(EndpointErrors),
}

impl Client {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdConfigError> {
        let endpoints = config.parse_endpoints()?;
        let files = TlsSources::new(config);
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
            current: tokio::sync::Mutex::new(Current { connection: None, endpoint }),
            token: Mutex::new(Token::Unknown),
        })
    }

    /// Makes a call, on other members too if need be. It ends within [`PATIENCE`], and what making one connection takes.
    pub(super) async fn call<T, F>(&self, rpc: impl Fn(Rpc) -> F) -> Result<Answer<T>, CallError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut errors = EndpointErrors::default();
        let (mut attempts, mut repeated, mut logged_in_again) = (0, false, false);
        loop {
            let Some(connection) = self.connection(deadline, &mut errors).await else {
                return Err(CallError::EndpointErrors(errors));
            };
            let rpc_error = match self.attempt(&connection, deadline, &rpc).await {
                Ok(value) => return Ok(Answer { value, repeated }),
                Err(rpc_error) => rpc_error,
            };
            let error = match rpc_error {
                RpcError::Answer(status) => {
                    return Err(CallError::Answer(connection.endpoint.clone(), status));
                }
                RpcError::Token if !logged_in_again => {
                    self.forget_token();
                    logged_in_again = true;
                    continue;
                }
                RpcError::Token => {
                    let reason = "a login that it has just given is not valid".into();
                    EndpointError::Refused { endpoint: connection.endpoint.clone(), reason }
                }
                RpcError::EndpointError(error) => error,
            };
            debug!(%error, "a call to etcd failed");
            let everywhere = error.is_everywhere();
            if !everywhere {
                self.give_up(&connection).await;
            }
            errors.add(error);
            attempts += 1;
            // One more than there are members: the first connection may have been an old one.
            if everywhere || attempts > self.endpoints.len() || Instant::now() >= deadline {
                return Err(CallError::EndpointErrors(errors));
            }
            repeated = true;
        }
    }

    /// Makes a call on a connection that stays in use, and has the connection.
    ///
    /// The first attempt at it: whoever follows a stream lists anew when it fails, and that finds another member.
    pub(super) async fn call_once<T, F>(
        &self,
        rpc: impl Fn(Rpc) -> F,
    ) -> Result<(T, Arc<Connection>), (Option<Arc<Connection>>, RpcError)>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        let mut errors = EndpointErrors::default();
        let Some(connection) = self.connection(deadline, &mut errors).await else {
            let last = errors.last().expect("there is an endpoint, and it was tried");
            return Err((None, RpcError::EndpointError(last)));
        };
        match self.attempt(&connection, deadline, &rpc).await {
            Ok(value) => Ok((value, connection)),
            Err(rpc_error) => Err((Some(connection), rpc_error)),
        }
    }

    /// What a status means that `connection` had.
    pub(super) fn rpc_error(&self, connection: &Connection, status: Status) -> RpcError {
        connection.rpc_error(status, self.user(), &self.prefix)
    }

    /// Uses another member from now on, if it is still `connection` that is used.
    pub(super) async fn give_up(&self, connection: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        if current.connection.as_ref().is_some_and(|used| Arc::ptr_eq(used, connection)) {
            current.connection = None;
            current.endpoint = (current.endpoint + 1) % self.endpoints.len();
        }
    }

    /// Logs in anew for the next call.
    pub(super) fn forget_token(&self) {
        *self.token.lock().expect("nothing panics while it is locked") = Token::Unknown;
    }

    async fn attempt<T, F>(
        &self,
        connection: &Connection,
        deadline: Instant,
        rpc: impl Fn(Rpc) -> F,
    ) -> Result<T, RpcError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let token = self.token(connection, deadline).await?;
        self.in_time(connection, deadline, rpc(connection.rpc(token))).await
    }

    async fn in_time<T>(
        &self,
        connection: &Connection,
        deadline: Instant,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, RpcError> {
        let start = Instant::now();
        let Ok(answer) = timeout_at(deadline.min(start + ANSWER_TIMEOUT), answer).await else {
            let (endpoint, patience) = (connection.endpoint.clone(), rounded(start.elapsed()));
            return Err(RpcError::EndpointError(EndpointError::Silent { endpoint, patience }));
        };
        let value = answer.map_err(|status| self.rpc_error(connection, status))?;
        connection.has_answered();
        Ok(value)
    }

    /// The token to show, for which it logs in if there is none.
    async fn token(
        &self,
        connection: &Connection,
        deadline: Instant,
    ) -> Result<Option<MetadataValue<Ascii>>, RpcError> {
        let Some(login) = &self.login else {
            return Ok(None);
        };
        let known = self.token.lock().expect("nothing panics while it is locked").clone();
        match known {
            Token::Needless => return Ok(None),
            Token::Valid(token) => return Ok(Some(token)),
            Token::Unknown => {}
        }
        let answer = connection.rpc(None).authenticate(login.clone());
        let token = match self.in_time(connection, deadline, answer).await {
            Ok(answer) => match answer.token.parse() {
                Ok(token) => Token::Valid(token),
                Err(_) => Token::Unknown,
            },
            Err(RpcError::Answer(status)) if status.code() == Code::FailedPrecondition => {
                warn!(endpoint = %connection.endpoint, "etcd has no users, going on without a login");
                Token::Needless
            }
            Err(rpc_error) => return Err(rpc_error),
        };
        *self.token.lock().expect("nothing panics while it is locked") = token.clone();
        match token {
            Token::Valid(token) => Ok(Some(token)),
            _ => Ok(None),
        }
    }

    /// The connection in use, or a new one to the next endpoint that takes it. If there is none, the errors say why.
    async fn connection(
        &self,
        deadline: Instant,
        errors: &mut EndpointErrors,
    ) -> Option<Arc<Connection>> {
        let out_of_time = |endpoint: usize| {
            let endpoint = self.endpoints[endpoint].clone();
            EndpointError::Silent { endpoint, patience: PATIENCE }
        };
        let Ok(mut current) = timeout_at(deadline, self.current.lock()).await else {
            // Others are trying all the time.
            errors.add(out_of_time(0));
            return None;
        };
        if let Some(connection) = &current.connection {
            return Some(Arc::clone(connection));
        }
        for _ in &self.endpoints {
            if Instant::now() >= deadline {
                errors.add(out_of_time(current.endpoint));
                return None;
            }
            let endpoint = &self.endpoints[current.endpoint];
            match Connection::open(endpoint, &self.files).await {
                Ok(connection) => {
                    debug!(%endpoint, "connected to etcd");
                    let connection = Arc::new(connection);
                    current.connection = Some(Arc::clone(&connection));
                    return Some(connection);
                }
                Err(error) => {
                    debug!(%error, "cannot connect to etcd");
                    errors.add(error);
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

impl CallError {
    /// The error of `operation`.
    pub(super) fn of(self, operation: impl Into<String>) -> RegistryError {
        match self {
            Self::Answer(endpoint, status) => {
                let reason = status.message().to_owned();
                EndpointErrors::from(EndpointError::Refused { endpoint, reason }).of(operation)
            }
            Self::EndpointErrors(errors) => errors.of(operation),
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

/// How long a member may take to answer. An election takes one to two seconds with etcd's defaults, and etcd's own limit for
/// a request is seven.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take with all its attempts: those at three members that hang.
const PATIENCE: Duration = Duration::from_secs(20);
