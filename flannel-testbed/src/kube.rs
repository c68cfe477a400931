//! A Kubernetes API server for tests: nodes, pods, policies and what else they need in memory, served over real connections, with
//! faults on demand.

mod gzip;
mod http;
mod merge;
mod objects;
mod protobuf;
mod sample_node;
mod serve;
mod streams;
mod target;
mod write;

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use objects::Objects;
use sample_node::node;

pub use target::Right;

/// An API server in this process, with a thread of its own. It ends when the value is dropped.
///
/// It creates objects, and has list with pages, watch with bookmarks and resumption, WatchList, metadata-only watches, field selectors for names, and
/// strategic merge patches of objects and their status. It decides nothing: no node gets a block of addresses unless a test says so.
#[derive(Debug)]
pub struct FakeApiServer {
    shared: Arc<Shared>,
    bind: Bind,
    address: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Whether it streams lists.
    pub watch_list: bool,
    /// Whether it has protobuf for who wants it; what it has is enough for Nodes.
    pub protobuf: bool,
    /// How often a watch gets a bookmark.
    pub bookmark_every: Duration,
    /// The token that it accepts; any if none.
    pub token: Option<String>,
    /// What it answers instead, to so many requests.
    pub refusal: Option<(Refusal, usize)>,
    /// The rights that whoever asks has; all if none.
    pub allowed: Option<BTreeSet<Right>>,
    /// Which methods of which kinds nobody has the right to, such as `POST` of `events`.
    pub forbidden: Vec<(String, String)>,
    /// How many of the next watches are told at once that what they go on from is gone.
    pub expired_watches: usize,
    /// Whether watches that go on from somewhere end with an error of the server's.
    pub broken_watches: bool,
    /// Whether lists are compressed for everybody, as by a proxy that does more than it should.
    pub compresses_unasked: bool,
    /// How long it thinks before each answer.
    pub delay: Duration,
    /// The path of which requests are not answered at all.
    pub unanswered: Option<String>,
}

/// An answer instead of what was asked for.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// One word.
    pub reason: String,
    /// Words.
    pub message: String,
    /// What `Retry-After` says, in seconds.
    pub retry_after: Option<u64>,
}

/// What an answer says.
#[derive(Clone, Debug)]
pub enum Body {
    /// JSON, or whatever else is a text.
    Text(String),
    /// The stream of a watch in protobuf.
    Protobuf(Vec<u8>),
}

impl<T: Into<String>> From<T> for Body {
    fn from(text: T) -> Self {
        Self::Text(text.into())
    }
}

/// A request that the server got.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, as it was sent.
    pub query: String,
    /// What is accepted.
    pub accept: String,
    /// In which encodings, such as `gzip`.
    pub accept_encoding: String,
    /// The body.
    pub body: String,
}

struct Bind(Box<dyn Fn() -> io::Result<TcpListener> + Send + Sync>);

/// What is asked before anything else.
type Answers = Box<dyn Fn(&Request) -> Option<(u16, Body)> + Send + Sync>;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    answers: Special,
    /// Counts what happens, for watches to wait for.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Special(Mutex<Option<Answers>>);

#[derive(Debug)]
struct State {
    objects: Objects,
    behaviour: Behaviour,
    requests: Vec<Request>,
    /// Watches of before are cut or silent.
    cut_before: u64,
    silent_before: u64,
    next_stream: u64,
    open_streams: usize,
    bytes_sent: u64,
}

impl FakeApiServer {
    /// Starts one on a port of the loopback device.
    ///
    /// # Panics
    ///
    /// If there is no port.
    pub fn on_loopback() -> Self {
        Self::start(|| TcpListener::bind("127.0.0.1:0")).expect("a port on the loopback device")
    }

    /// Starts one on what `bind` makes: in the namespace of a host, perhaps. It is called again after a [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// Why there is no socket.
    pub fn start(
        bind: impl Fn() -> io::Result<TcpListener> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = bind()?;
        let state = State {
            objects: Objects::default(),
            behaviour: Behaviour::default(),
            requests: Vec::new(),
            cut_before: 0,
            silent_before: 0,
            next_stream: 1,
            open_streams: 0,
            bytes_sent: 0,
        };
        let (state, answers) = (Mutex::new(state), Special::default());
        let shared = Shared { state, answers, changed: watch::Sender::new(0) };
        let address = listener.local_addr()?;
        let mut server =
            Self { shared: Arc::new(shared), bind: Bind(Box::new(bind)), address, running: None };
        server.run(listener)?;
        Ok(server)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections and takes no more. The objects stay.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // It may have ended by itself.
            stop.send(()).ok();
            thread.join().ok();
        }
    }

    /// Serves again after a [`stop`](Self::stop), at the same address if that was bound by name.
    ///
    /// # Errors
    ///
    /// Why there is no socket.
    pub fn resume(&mut self) -> io::Result<()> {
        let bind = || match self.address.ip().is_loopback() {
            true => TcpListener::bind(self.address),
            false => (self.bind.0)(),
        };
        let deadline = Instant::now() + PATIENCE;
        let listener = loop {
            match bind() {
                // A child of another thread has the old socket too until it executes its program.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                bound => break bound?,
            }
        };
        self.run(listener)
    }

    /// Creates or replaces a node with this `podCIDRs`, with annotations if given. It has a condition and 13 kB of images, as real
    /// ones do, if `real_size`.
    pub fn add_node(&self, name: &str, pod_cidrs: &[&str], real_size: bool) {
        self.put("nodes", name, node(name, pod_cidrs, real_size));
    }

    /// Creates or replaces an object; a new one gets a new uid.
    pub fn put(&self, plural: &str, key: &str, object: Value) {
        self.change(|state| state.objects.put(plural, key, object));
    }

    /// Merges `patch` into an object, as an operator does with kubectl.
    ///
    /// # Panics
    ///
    /// If there is no such object.
    pub fn patch(&self, plural: &str, key: &str, patch: &Value) {
        let patched = self.change(|state| state.objects.patch(plural, key, patch, None));
        assert!(patched.is_some(), "no {plural} {key}");
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, plural: &str, key: &str) {
        self.change(|state| state.objects.delete(plural, key));
    }

    /// An object as it is.
    pub fn get(&self, plural: &str, key: &str) -> Option<Value> {
        let text = self.shared.state().objects.get(plural, key)?;
        serde_json::from_str(&text).ok()
    }

    /// The keys of all objects of a kind.
    pub fn names(&self, plural: &str) -> Vec<String> {
        let state = self.shared.state();
        let (all, _) = state.objects.page(plural, None, usize::MAX);
        all.into_iter().map(|(key, _)| key.to_owned()).collect()
    }

    /// An annotation of a node.
    pub fn annotation(&self, node: &str, name: &str) -> Option<String> {
        let node = self.get("nodes", node)?;
        Some(node["metadata"]["annotations"].get(name)?.as_str()?.to_owned())
    }

    /// Changes how it behaves from now on.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.change(|state| change(&mut state.behaviour));
    }

    /// Answers requests as `answers` says, with an HTTP status and a body, where that says anything: for what is behind pods.
    pub fn answer_with(
        &self,
        answers: impl Fn(&Request) -> Option<(u16, Body)> + Send + Sync + 'static,
    ) {
        *self.shared.answers.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(answers));
    }

    /// Ends all watches.
    pub fn cut_streams(&self) {
        self.change(|state| state.cut_before = state.next_stream);
    }

    /// Lets all watches that are open say nothing any more, without ending them.
    pub fn silence_streams(&self) {
        self.change(|state| state.silent_before = state.next_stream);
    }

    /// Forgets what happened: whoever wants to go on from before has to list again.
    pub fn compact(&self) {
        self.change(|state| state.objects.compact());
    }

    /// The requests so far; they are forgotten with this.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.state().requests)
    }

    /// How many watches are open.
    pub fn open_streams(&self) -> usize {
        self.shared.state().open_streams
    }

    /// How many bytes of bodies were sent so far.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.state().bytes_sent
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.shared.state());
        self.shared.changed.send_modify(|count| *count += 1);
        changed
    }

    fn run(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread =
            std::thread::Builder::new().name("fake-api-server".into()).spawn(move || {
                runtime.block_on(serve::serve(listener, shared, stopped));
            })?;
        self.running = Some((stop, thread));
        Ok(())
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            watch_list: true,
            protobuf: true,
            bookmark_every: Duration::from_secs(60),
            token: None,
            refusal: None,
            allowed: None,
            forbidden: Vec::new(),
            expired_watches: 0,
            broken_watches: false,
            compresses_unasked: false,
            delay: Duration::ZERO,
            unanswered: None,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Special {
    fn answer(&self, request: &Request) -> Option<(u16, Body)> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.as_ref().and_then(|answers| answers(request))
    }
}

impl std::fmt::Debug for Special {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Special")
    }
}

impl std::fmt::Debug for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bind")
    }
}

/// How long the address of before may still be in use.
const PATIENCE: Duration = Duration::from_secs(5);
