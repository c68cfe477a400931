//! Proof that this kernel carries what the BPF programs are given, before they are attached to the node's devices.
//!
//! A thread of its own makes a pair of network namespaces, runs a node of this backend in each, and sends from one to the other: over
//! TCP in large packets, UDP datagrams that are sent as one, and TCP whose source is translated. Namespaces live as long as somebody
//! holds them, so nothing is left.

mod flows;
mod pair;

use std::{error::Error, fmt, net::IpAddr, sync::Arc, thread};

use async_trait::async_trait;
use flannel_core::{Family, error_chain};
use flannel_netlink::Namespace;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::{
    sync::watch,
    time::{Duration, Instant, timeout},
};

use crate::bpf::{self, BpfError};

/// What came of a self-test that passed.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SelfTest {
    /// How long it took.
    pub took: Duration,
    /// Why no packet had its source translated; `None` if that was tried, and passed as well.
    pub nat_not_tried: Option<String>,
}

/// Why the self-test did not show that BPF programs carry packets.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// Data did not arrive, or other data.
    #[error("self-test failed: {flow} over {family}: {reason}")]
    Flow {
        /// What was sent, such as `TCP`.
        flow: &'static str,
        /// Over which family.
        family: Family,
        /// What came instead, or the kernel's reason.
        reason: String,
    },
    /// It took longer than [`LIMIT`](SelfTest::LIMIT).
    #[error("self-test failed: it did not end within {} s", SelfTest::LIMIT.as_secs())]
    Late,
    /// The kernel does not take the programs.
    #[error("self-test failed: {reason}")]
    Load {
        /// The kernel's reason.
        reason: String,
    },
    /// Nothing was shown, because there was nothing to show it on.
    #[error("self-test not tried: {reason}")]
    NotTried {
        /// What is missing.
        reason: String,
    },
}

/// Translates addresses in the self-test: what that takes, backends do not know.
#[async_trait]
pub trait Masquerade: Send + Sync + 'static {
    /// Has `namespace` give packets from `source` the address of the device that they leave on.
    ///
    /// # Errors
    ///
    /// What is missing. The self-test then goes without.
    async fn masquerade(
        &self,
        namespace: &Namespace,
        source: IpAddr,
    ) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// The self-test of one backend: run when it is first asked for, and again on demand.
#[derive(Debug)]
pub(crate) struct SelfTests {
    plan: Plan,
    state: watch::Sender<State>,
}

/// What is tested.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) families: Vec<Family>,
    pub(crate) masquerade: Option<Arc<dyn Masquerade>>,
    /// Called with both namespaces before anything is sent.
    pub(crate) spoil: Option<fn(&Namespace, &Namespace)>,
}

#[derive(Clone, Debug)]
enum State {
    Idle,
    /// A thread is at it.
    Runs,
    Ended(Result<SelfTest, SelfTestError>),
}

impl SelfTest {
    /// What it may take. A build without optimization was seen to take 2 s for both families, where 12 threads shared two processors.
    pub const LIMIT: Duration = Duration::from_secs(3);
}

impl fmt::Display for SelfTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "passed in {} ms", self.took.as_millis())?;
        match &self.nat_not_tried {
            Some(reason) => write!(f, "; without NAT: {reason}"),
            None => Ok(()),
        }
    }
}

impl SelfTests {
    pub(crate) fn new(plan: Plan) -> Self {
        Self { plan, state: watch::Sender::new(State::Idle) }
    }

    pub(crate) const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Starts the test unless it runs or has ended. Its thread has the rights of the calling one.
    pub(crate) fn begin(&self) {
        self.begin_if(|state| matches!(state, State::Idle));
    }

    /// Starts the test once more if it failed. What could not be tried is not tried again: rights do not come back.
    pub(crate) fn repeat(&self) {
        self.begin_if(|state| match state {
            State::Idle => true,
            State::Ended(Err(error)) => !matches!(error, SelfTestError::NotTried { .. }),
            State::Runs | State::Ended(Ok(_)) => false,
        });
    }

    fn begin_if(&self, is_wanted: impl FnOnce(&State) -> bool) {
        let started = self.state.send_if_modified(|state| {
            let is_wanted = is_wanted(state);
            if is_wanted {
                *state = State::Runs;
            }
            is_wanted
        });
        if !started {
            return;
        }
        let (plan, state) = (self.plan.clone(), self.state.clone());
        let spawned = thread::Builder::new()
            .name("udp-self-test".into())
            .spawn(move || state.send_replace(State::Ended(plan.run())));
        if let Err(error) = spawned {
            let reason = format!("cannot start a thread: {error}");
            self.state.send_replace(State::Ended(Err(SelfTestError::NotTried { reason })));
        }
    }

    /// What came of it, if it has ended.
    pub(crate) fn ended(&self) -> Option<Result<SelfTest, SelfTestError>> {
        match &*self.state.borrow() {
            State::Ended(outcome) => Some(outcome.clone()),
            State::Idle | State::Runs => None,
        }
    }

    /// What came of it, once it has ended. Starts it if nobody has.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the test running; the next call has what came of it.
    pub(crate) async fn outcome(&self) -> Result<SelfTest, SelfTestError> {
        self.begin();
        self.end().await
    }

    /// Resolves once the test has ended, and never if it was not begun.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn end(&self) -> Result<SelfTest, SelfTestError> {
        let mut states = self.state.subscribe();
        // The sender lives as long as this.
        let _ = states.wait_for(|state| matches!(state, State::Ended(_))).await;
        self.ended().unwrap_or(Err(SelfTestError::Late))
    }
}

impl Plan {
    /// On a thread of its own: it blocks, and raises that thread's rights.
    fn run(self) -> Result<SelfTest, SelfTestError> {
        let started = Instant::now();
        raise_rights();
        // Not permitted is found out without making anything.
        bpf::try_load().map_err(SelfTestError::load)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| SelfTestError::not_tried(&error))?;
        let nat_not_tried = runtime.block_on(async {
            let mut pair = None;
            let passed = timeout(SelfTest::LIMIT, self.pass(&mut pair)).await;
            // Threads hold the namespaces until they are stopped.
            if let Some(pair) = pair {
                pair.teardown().await;
            }
            passed.unwrap_or(Err(SelfTestError::Late))
        })?;
        Ok(SelfTest { took: started.elapsed(), nat_not_tried })
    }

    async fn pass(&self, made: &mut Option<pair::Pair>) -> Result<Option<String>, SelfTestError> {
        let pair = made.insert(pair::Pair::create(&self.families)?);
        pair.connect().await?;
        if let Some(spoil) = self.spoil {
            spoil(pair.namespaces().0, pair.namespaces().1);
        }
        for family in &self.families {
            flows::tcp(pair, *family).await?;
            flows::udp(pair, *family).await?;
        }
        let Some(masquerade) = &self.masquerade else {
            return Ok(Some("nobody translates addresses".into()));
        };
        for family in &self.families {
            if let Err(reason) = pair.masquerade(&**masquerade, *family).await {
                return Ok(Some(reason));
            }
            flows::translated(pair, *family).await?;
        }
        Ok(None)
    }
}

impl SelfTestError {
    fn load(error: BpfError) -> Self {
        let reason = error_chain(&error);
        match error {
            BpfError::NotPermitted => Self::NotTried { reason },
            _ => Self::Load { reason },
        }
    }

    fn not_tried(error: &(dyn Error + 'static)) -> Self {
        Self::NotTried { reason: error_chain(error) }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("families", &self.families).finish_non_exhaustive()
    }
}

/// Lets this thread make namespaces if it may. A sandbox keeps that right from being used by others until it is given up.
fn raise_rights() {
    let Ok(mut sets) = capabilities(None) else { return };
    sets.effective |= sets.permitted & CapabilitySet::SYS_ADMIN;
    // Without it the test says what is missing.
    let _ = set_capabilities(None, sets);
}
