//! How a migration begins and ends.

use std::{collections::BTreeMap, mem};

use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Recorded,
    migrating_network::{Leaving, MigratingNetwork},
    migration_plan::{Layout, MigrationPlan, Published, Side},
    shared_state::Running,
};
use crate::{
    backend::{BackendError, Network},
    config::NetworkConfig,
    fault::error_chain,
    peers::{Peers, RouteScope},
    report::{MigrationReport, WaitingPeer},
};

impl MigratingNetwork {
    /// Goes on to the end when there is nothing else to do: the backend that is left goes when nobody can send by it any more.
    pub(super) async fn finish_if_due(
        &mut self,
        plan: &MigrationPlan,
        target: Side,
        peers: &Peers,
    ) -> Option<MigrationReport> {
        let (is_left, linger) = {
            let mut state = self.shared.state();
            state.layout = Some(plan.layout);
            let published = Published::by(&peers.own().attrs);
            let only = Published {
                first: state.side(target).map_or("", |running| &running.backend_type),
                second: None,
            };
            (plan.layout == Layout::Only(target) && published == only, self.shared.options.linger)
        };
        if !is_left {
            self.left_at = None;
            self.turn_back();
        } else {
            let now = Instant::now();
            let until = *self.left_at.get_or_insert(now) + linger;
            if until <= now {
                self.finish(target, peers).await;
                return None;
            }
            self.look_at = Some(until);
        }
        Some(self.progress(plan, target, peers))
    }

    /// Goes back at once to what was to be taken down first, because peers need it again.
    fn turn_back(&mut self) {
        let then = {
            let mut state = self.shared.state();
            let is_there = state.then.as_ref().is_some_and(|it| state.side_of(it).is_some());
            is_there.then(|| state.then.take()).flatten()
        };
        if let Some(config) = then {
            self.look_at = Some(Instant::now());
            self.go_on_to(&config);
        }
    }

    fn go_on_to(&mut self, config: &NetworkConfig) {
        if let Err(error) = self.begin(config) {
            warn!("cannot move to {}: {}", config.backend().kind(), error_chain(&error));
        }
    }

    fn progress(&self, plan: &MigrationPlan, target: Side, peers: &Peers) -> MigrationReport {
        let state = self.shared.state();
        let kind = |side| state.side(side).map_or_else(String::new, |it| it.kind().to_owned());
        let waiting = if plan.late.is_empty() { &plan.waiting } else { &plan.late };
        let named = waiting.iter().filter_map(|subnet| peers.get(subnet));
        MigrationReport {
            from: kind(target.other()),
            to: kind(target),
            moved: plan.via.values().filter(|side| **side == target).count(),
            peers: peers.len(),
            waiting: waiting.len(),
            named: named.take(MigrationReport::NAMED).map(WaitingPeer::new).collect(),
            leaving: matches!(plan.layout, Layout::Only(_)),
            then: state.then.as_ref().map(|config| config.backend().kind().to_owned()),
        }
    }

    /// Takes down the backend that is left.
    async fn finish(&mut self, target: Side, peers: &Peers) {
        let Some(beside) = self.beside.take() else { return };
        let (left, kept) = {
            let state = self.shared.state();
            (state.side(target.other()).cloned(), state.side(target).cloned())
        };
        let (Some(left), Some(kept)) = (left, kept) else { return };
        let gives_way = target == Side::Beside;
        let old = if gives_way { mem::replace(&mut self.base, beside) } else { beside };
        {
            let mut state = self.shared.state();
            (state.base, state.beside, state.target) = (kept, None, Side::Base);
            (state.layout, state.advertised) = (None, None);
        }
        (self.via, self.left_at) = (Some(BTreeMap::new()), None);
        let kind = left.kind().to_owned();
        self.leaving = Some(Leaving { kind, gives_way, teardown: old.teardown() });
        self.take_down(peers).await;
    }

    /// Takes down the backend that was left, if there is one. Dropped midway, the next sync goes on with it.
    pub(super) async fn take_down(&mut self, peers: &Peers) {
        let Some(gives_way) = self.leaving.as_ref().map(|it| it.gives_way) else { return };
        let kept = self.shared.state().base.clone();
        // Its route for the whole network is there before those to peers go.
        if gives_way && let Err(error) = self.sync_alone(&kept, peers, RouteScope::Both).await {
            warn!("cannot sync {} alone: {}", kept.kind(), error_chain(&error));
        }
        if let Some(leaving) = &mut self.leaving {
            if let Err(error) = (&mut leaving.teardown).await {
                warn!("cannot take down {}: {}", leaving.kind, error_chain(&error));
            }
            info!(backend = kept.kind(), left = leaving.kind, "migration finished");
        }
        self.leaving = None;
        let then = self.shared.state().then.take();
        self.remember();
        self.look_at = Some(Instant::now());
        if let Some(config) = then {
            self.go_on_to(&config);
        }
    }

    pub(super) fn remember(&self) {
        let record = self.shared.state().record();
        if let Err(error) = self.shared.source.remember(&record) {
            warn!("cannot remember the backend over a restart: {}", error_chain(&error));
        }
    }

    /// Begins to move to the backend of `config`, or turns back to it.
    pub(super) fn begin(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        self.shared.source.admit(config)?;
        let kind = config.backend().kind();
        let state = self.shared.state().clone();
        if let Some(side) = state.side_of(config) {
            // What the lease does not name any more is on its way out, and comes back as a new one.
            if side != state.target && self.left_at.is_some() {
                self.shared.state().then = Some(config.clone());
                return Ok(());
            }
            if let Some(running) = state.side(side)
                && running.recorded.config.backend() != config.backend()
            {
                self.reconfigure(config.backend())?;
            }
            let mut state = self.shared.state();
            (state.target, state.then) = (side, None);
            return Ok(());
        }
        if state.beside.is_some() {
            self.shared.state().then = Some(config.clone());
            return Ok(());
        }
        if config.backend().lease_type() == state.base.backend_type {
            let reason =
                format!("{} publishes the same, take another one in between", state.base.kind());
            return Err(BackendError::Unsupported { backend: kind.into(), reason });
        }
        let alternate = !state.base.recorded.alternate;
        let recorded = Recorded { config: config.clone(), alternate };
        let beside = Running::new(self.shared.source.as_ref(), recorded, true)?;
        let mut record = state.record();
        record.beside = Some(beside.recorded.clone());
        self.shared.source.remember(&record)?;
        info!(from = state.base.kind(), to = kind, "migration begins");
        let mut state = self.shared.state();
        (state.beside, state.target, state.layout) = (Some(beside), Side::Beside, None);
        Ok(())
    }
}
