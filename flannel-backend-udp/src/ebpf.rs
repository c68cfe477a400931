//! The eBPF engine where it is wanted and the kernel has it.

use std::{error::Error, time::Duration};

use flannel_core::{BackendError, SyncReport};
use flannel_netlink::Namespace;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    KIND,
    bpf::{self, BpfError, Owner},
    config::EngineChoice,
    engine::EngineStats,
    plan::ForwardingPlan,
};

/// The eBPF engine, or the reason why there is none.
#[derive(Debug)]
pub(crate) struct Ebpf {
    choice: EngineChoice,
    namespace: Namespace,
    owner: Owner,
    state: State,
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
    /// It is not wanted, and nothing of it is left.
    Unwanted,
}

impl Ebpf {
    pub(crate) fn new(namespace: &Namespace, choice: EngineChoice, owner: Owner) -> Self {
        Self { choice, namespace: namespace.clone(), owner, state: State::New }
    }

    /// Has the kernel carry packets by these plan, and returns whether it does: else the userspace engine carries all of them.
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
            State::New | State::Refused { .. } => {
                match bpf::Engine::open(&self.namespace, &self.owner) {
                    Ok(engine) => self.state = State::Running(Box::new(engine)),
                    Err(error) => return self.refuse(error, plan, tunnel, engine_stats).await,
                }
            }
            State::Running(_) => {}
        }
        let State::Running(engine) = &mut self.state else {
            return Ok(false);
        };
        match engine.sync(plan, tunnel).await {
            Ok(changes) => {
                report.added += changes.added;
                report.replaced += changes.replaced;
                report.removed += changes.removed;
                if engine_stats.ebpf_started(engine) {
                    info!("BPF programs carry packets");
                }
                Ok(true)
            }
            Err(error) => self.refuse(error, plan, tunnel, engine_stats).await,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Resolves when what the kernel runs may not be as it was left.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if that cannot be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn drifted(&mut self) -> Result<(), BackendError> {
        match &mut self.state {
            State::Running(engine) => engine.drifted().await.map_err(refused),
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
        error: BpfError,
        plan: &ForwardingPlan,
        tunnel: u32,
        engine_stats: &EngineStats,
    ) -> Result<bool, BackendError> {
        self.state = State::Refused { until: Instant::now() + RETRY_AFTER };
        // Half of it would drop what it does not know.
        self.remove_leftover(plan, tunnel).await;
        let reason = chain(&error);
        engine_stats.ebpf_stopped(&reason);
        if self.choice == EngineChoice::Ebpf {
            self.state = State::New;
            return Err(refused(error));
        }
        warn!(reason, "BPF programs cannot carry packets: the userspace engine does");
        Ok(false)
    }

    async fn remove_leftover(&self, plan: &ForwardingPlan, tunnel: u32) {
        match bpf::remove_leftover(&self.namespace, plan.link, tunnel, &self.owner).await {
            Ok(true) => info!(link = plan.link, "filters with BPF programs removed"),
            Ok(false) => {}
            Err(error) => debug!(reason = chain(&error), "filters cannot be looked at"),
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

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A kernel that refuses once will mostly refuse again, and the next sync may come soon.
const RETRY_AFTER: Duration = Duration::from_secs(60);
