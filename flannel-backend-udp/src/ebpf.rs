//! The eBPF engine where it is wanted and the kernel has it.

use std::{sync::Arc, time::Duration};

use flannel_core::{BackendError, SyncReport, error_chain};
use flannel_netlink::Namespace;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    KIND,
    bpf::{self, BpfError, Owner},
    config::EngineChoice,
    engine::EngineStats,
    plan::ForwardingPlan,
    self_test::{SelfTestError, SelfTests},
};

/// The eBPF engine, or the reason why there is none.
#[derive(Debug)]
pub(crate) struct Ebpf {
    choice: EngineChoice,
    namespace: Namespace,
    owner: Owner,
    /// `None` for the nodes of a self-test.
    self_tests: Option<Arc<SelfTests>>,
    state: State,
    /// Whether what the node publishes has to be asked for again.
    publishes_anew: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing was tried.
    New,
    /// Not before then.
    Refused {
        until: Instant,
    },
    Running(Box<bpf::Engine>),
    /// After a refusal the self-test has to pass first.
    Testing,
    /// It is not wanted, and nothing of it is left.
    Unwanted,
}

/// Why there is no eBPF engine.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

impl Ebpf {
    pub(crate) fn new(
        namespace: &Namespace,
        choice: EngineChoice,
        owner: Owner,
        self_tests: Option<Arc<SelfTests>>,
    ) -> Self {
        let (namespace, state) = (namespace.clone(), State::New);
        Self { choice, namespace, owner, self_tests, state, publishes_anew: false }
    }

    /// Has the kernel carry packets by this plan, and returns whether it does: else the userspace engine carries all of them.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if nothing but the eBPF engine is wanted, and the kernel refuses.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves part of the work done; the next call does the rest.
    pub(crate) async fn sync(
        &mut self,
        plan: &ForwardingPlan,
        tunnel: u32,
        engine_stats: &EngineStats,
        report: &mut SyncReport,
    ) -> Result<bool, BackendError> {
        match &self.state {
            State::Unwanted => return Ok(false),
            State::New if self.choice == EngineChoice::Userspace => {
                self.remove_leftover(plan, tunnel).await;
                self.state = State::Unwanted;
                return Ok(false);
            }
            State::Refused { until } if Instant::now() < *until => return Ok(false),
            State::Refused { .. } => {
                if let Some(self_tests) = &self.self_tests {
                    self_tests.repeat();
                }
                self.state = State::Testing;
            }
            State::New | State::Running(_) | State::Testing => {}
        }
        if !matches!(self.state, State::Running(_)) {
            let Some(proof) = self.proof().await else {
                return Ok(false);
            };
            let opened = proof
                .map_err(Refusal::from)
                .and_then(|()| Ok(bpf::Engine::open(&self.namespace, &self.owner)?));
            match opened {
                Ok(engine) => self.state = State::Running(Box::new(engine)),
                Err(refusal) => return self.refuse(refusal, plan, tunnel, engine_stats).await,
            }
        }
        let State::Running(engine) = &mut self.state else {
            return Ok(false);
        };
        match engine.sync(plan, tunnel).await {
            Ok(changes) => {
                report.added += changes.added;
                report.replaced += changes.replaced;
                report.removed += changes.removed;
                let was_refused = engine_stats.is_refused();
                if engine_stats.ebpf_started(engine) {
                    self.publishes_anew |= was_refused && self.choice == EngineChoice::Auto;
                    info!("BPF programs carry packets");
                }
                Ok(true)
            }
            Err(error) => self.refuse(error.into(), plan, tunnel, engine_stats).await,
        }
    }

    /// Whether the self-test has shown that programs carry packets; `None` if that is still to come, after a refusal. Who insists on
    /// programs gets them without.
    async fn proof(&self) -> Option<Result<(), SelfTestError>> {
        let Some(self_tests) = &self.self_tests else {
            return Some(Ok(()));
        };
        if self.choice == EngineChoice::Ebpf {
            self_tests.begin();
            return Some(Ok(()));
        }
        let outcome = match self.state {
            State::Testing => self_tests.ended()?,
            _ => self_tests.outcome().await,
        };
        Some(outcome.map(drop))
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Resolves when what the kernel runs may not be as it was left, or what the node publishes may be no longer true.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if that cannot be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn drifted(&mut self) -> Result<(), BackendError> {
        if std::mem::take(&mut self.publishes_anew) {
            return Ok(());
        }
        match (&mut self.state, &self.self_tests) {
            (State::Running(engine), _) => engine.drifted().await.map_err(refused),
            (State::Testing, Some(self_tests)) => {
                self_tests.end().await.ok();
                Ok(())
            }
            _ => std::future::pending().await,
        }
    }

    /// Removes the programs from the devices.
    pub(crate) async fn teardown(self) -> Result<(), BackendError> {
        match self.state {
            State::Running(engine) => engine.teardown().await.map_err(refused),
            _ => Ok(()),
        }
    }

    async fn refuse(
        &mut self,
        refusal: Refusal,
        plan: &ForwardingPlan,
        tunnel: u32,
        engine_stats: &EngineStats,
    ) -> Result<bool, BackendError> {
        self.state = State::Refused { until: Instant::now() + RETRY_AFTER };
        // Half of it would drop what it does not know.
        self.remove_leftover(plan, tunnel).await;
        let reason = error_chain(&refusal);
        let is_news = engine_stats.ebpf_stopped(&reason);
        match refusal {
            Refusal::Bpf(error) if self.choice == EngineChoice::Ebpf => {
                self.state = State::New;
                return Err(refused(error));
            }
            // What passed the test was published.
            Refusal::Bpf(_) => self.publishes_anew = is_news,
            Refusal::SelfTest(_) => {}
        }
        if is_news {
            warn!(reason, "BPF programs do not carry packets: the userspace engine does");
        }
        Ok(false)
    }

    async fn remove_leftover(&self, plan: &ForwardingPlan, tunnel: u32) {
        match bpf::remove_leftover(&self.namespace, plan.link, tunnel, &self.owner).await {
            Ok(true) => info!(link = plan.link, "filters with BPF programs removed"),
            Ok(false) => {}
            Err(error) => debug!(reason = error_chain(&error), "filters cannot be looked at"),
        }
    }
}

fn refused(error: BpfError) -> BackendError {
    match error {
        BpfError::NotPermitted => {
            let reason = format!("{error}, and Engine is ebpf: choose auto or userspace");
            BackendError::Unsupported { backend: KIND.into(), reason }
        }
        error => BackendError::Kernel {
            operation: "have the kernel carry packets".into(),
            source: error.into(),
        },
    }
}

/// A kernel that refuses once will mostly refuse again, and the next sync may come soon.
const RETRY_AFTER: Duration = Duration::from_secs(60);
