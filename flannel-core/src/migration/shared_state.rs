//! What the backend and its network work on together.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use super::{
    BackendSource, MigrationOptions, MigrationRecord, Place, Recorded,
    migration_plan::{Layout, Published, Side},
    projection::{attrs_of, compose, layout_of, with_attrs},
};
use crate::{
    backend::{Backend, BackendError},
    config::NetworkConfig,
    fault::error_chain,
    lease::{Lease, LeaseAttrs},
    report::BackendReport,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) source: Arc<dyn BackendSource>,
    pub(super) options: MigrationOptions,
    state: Mutex<State>,
}

/// Which backends there are, and what is published of them.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) base: Running,
    pub(super) beside: Option<Running>,
    /// The side of the network's backend.
    pub(super) target: Side,
    /// What is to be published; `None` until it is known what was published before.
    pub(super) layout: Option<Layout>,
    /// What was advertised last.
    pub(super) advertised: Option<Layout>,
    /// What is moved to afterwards: a third backend, or one that has to be taken down first.
    pub(super) then: Option<NetworkConfig>,
}

/// A backend of the node.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) recorded: Recorded,
    pub(super) backend: Arc<dyn Backend>,
    /// Its type as it is published.
    pub(super) backend_type: Cow<'static, str>,
    /// What it advertised last.
    pub(super) attrs: Option<LeaseAttrs>,
}

impl Running {
    pub(super) fn new(
        source: &dyn BackendSource,
        recorded: Recorded,
        beside: bool,
    ) -> Result<Self, BackendError> {
        let place = Place { beside, alternate: recorded.alternate };
        let backend = source.build(&recorded.config, place)?;
        let backend_type = recorded.config.backend().lease_type();
        Ok(Self { recorded, backend, backend_type, attrs: None })
    }

    pub(super) fn kind(&self) -> &str {
        self.recorded.config.backend().kind()
    }

    /// Our own lease as this backend sees it.
    pub(super) fn own_lease(&self, lease: &Lease) -> Lease {
        let attrs = attrs_of(&lease.attrs, &self.backend_type).or_else(|| self.attrs.clone());
        attrs.map_or_else(|| lease.clone(), |attrs| (*with_attrs(lease, attrs)).clone())
    }
}

impl State {
    pub(super) fn side(&self, side: Side) -> Option<&Running> {
        match side {
            Side::Base => Some(&self.base),
            Side::Beside => self.beside.as_ref(),
        }
    }

    pub(super) fn side_mut(&mut self, side: Side) -> Option<&mut Running> {
        match side {
            Side::Base => Some(&mut self.base),
            Side::Beside => self.beside.as_mut(),
        }
    }

    /// The side that the backend of `config` is on, if it is there.
    pub(super) fn side_of(&self, config: &NetworkConfig) -> Option<Side> {
        let kind = config.backend().kind();
        let is_it = |side: &Side| self.side(*side).is_some_and(|running| running.kind() == kind);
        Side::ALL.into_iter().find(is_it)
    }

    pub(super) fn record(&self) -> MigrationRecord {
        let beside = self.beside.as_ref().map(|it| it.recorded.clone());
        MigrationRecord { base: self.base.recorded.clone(), beside }
    }
}

impl Shared {
    pub(super) fn new(
        source: Arc<dyn BackendSource>,
        config: &NetworkConfig,
        options: MigrationOptions,
    ) -> Result<Self, BackendError> {
        let state = first_state(source.as_ref(), config)?;
        if let Err(error) = source.remember(&state.record()) {
            warn!("cannot remember the backend over a restart: {}", error_chain(&error));
        }
        Ok(Self { source, options, state: Mutex::new(state) })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to publish. A second backend that does not say what it publishes is left out, or is what it was before.
    pub(super) async fn advertise(
        &self,
        previous: Option<&Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let State { base, beside, layout, .. } = self.state().clone();
        let layout = match (&beside, layout) {
            (None, _) => Layout::Only(Side::Base),
            (Some(_), Some(layout)) => layout,
            (Some(beside), None) => previous.map_or(Layout::Only(Side::Base), |lease| {
                layout_of(Published::by(&lease.attrs), [&base.backend_type, &beside.backend_type])
            }),
        };
        let (first, second) = match layout {
            Layout::Only(first) => (first, None),
            Layout::Both { first, .. } => (first, Some(first.other())),
        };
        let mut attrs = [None, None];
        for side in [Some(first), second].into_iter().flatten() {
            let Some(running) = (if side == Side::Base { Some(&base) } else { beside.as_ref() })
            else {
                continue;
            };
            let lease = previous.map(|lease| running.own_lease(lease));
            attrs[side as usize] = match running.backend.advertise(lease.as_ref()).await {
                Ok(attrs) => Some(attrs),
                Err(error) if side == first => return Err(error),
                Err(error) => {
                    warn!(
                        backend = running.kind(),
                        "cannot find out what to publish: {}",
                        error_chain(&error)
                    );
                    let known = running.attrs.clone();
                    known.or_else(|| attrs_of(&previous?.attrs, &running.backend_type))
                }
            };
        }
        let mut state = self.state();
        for side in Side::ALL {
            if let (Some(running), Some(attrs)) = (state.side_mut(side), &attrs[side as usize]) {
                running.attrs = Some(attrs.clone());
            }
        }
        state.layout.get_or_insert(layout);
        state.advertised = Some(layout);
        Ok(compose(layout, attrs).expect("the first side has said what it publishes"))
    }

    pub(super) fn report(&self) -> BackendReport {
        let state = self.state().clone();
        state.side(state.target).unwrap_or(&state.base).backend.report()
    }
}

/// The backends that the node has: that of `config`, and what it had before if that is another.
fn first_state(source: &dyn BackendSource, config: &NetworkConfig) -> Result<State, BackendError> {
    let kind = |recorded: &Recorded| recorded.config.backend().kind().to_owned();
    let wanted = config.backend().kind();
    let alone = |alternate| {
        let recorded = Recorded { config: config.clone(), alternate };
        let base = Running::new(source, recorded, false)?;
        let (beside, target) = (None, Side::Base);
        Ok(State { base, beside, target, layout: None, advertised: None, then: None })
    };
    let Some(MigrationRecord { base, beside }) = source.recall() else { return alone(false) };
    let current = |recorded: Recorded| {
        // A network that was enlarged is so for either backend, and options are the newest.
        let backend = match kind(&recorded) == wanted {
            true => config.backend().clone(),
            false => recorded.config.backend().clone(),
        };
        Recorded { config: config.with_backend(backend), ..recorded }
    };
    let (base, beside) = match beside {
        Some(beside) => (base, beside),
        None if kind(&base) == wanted => return alone(base.alternate),
        None => {
            let alternate = !base.alternate;
            (base, Recorded { config: config.clone(), alternate })
        }
    };
    let (base, beside) = (current(base), current(beside));
    let target = if kind(&base) == wanted { Side::Base } else { Side::Beside };
    let is_third = target == Side::Beside && kind(&beside) != wanted;
    let lease_type = |recorded: &Recorded| recorded.config.backend().lease_type();
    if lease_type(&base) == lease_type(&beside) {
        return alone(base.alternate);
    }
    let alternate = if target == Side::Base { base.alternate } else { beside.alternate };
    let both = Running::new(source, base, true)
        .and_then(|base| Ok((base, Running::new(source, beside, true)?)));
    match both {
        Ok((base, beside)) => Ok(State {
            base,
            beside: Some(beside),
            target,
            layout: None,
            advertised: None,
            then: is_third.then(|| config.clone()),
        }),
        Err(error) => {
            warn!("cannot go on with the backend from before: {}", error_chain(&error));
            alone(alternate)
        }
    }
}
