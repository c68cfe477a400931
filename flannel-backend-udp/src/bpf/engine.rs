//! What the kernel runs for us, kept as it should be.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flannel_backend::filter::Direction;
use flannel_netlink::{Connection, Monitor, Namespace, Notice, Subject, Topic, link_by_index};
use tracing::debug;

use super::{
    error::BpfError,
    hook::{Hook, Owner},
    layout::Config,
    programs::{self, Changes, Counts, Maps, Programs},
};
use crate::plan::ForwardingPlan;

/// The programs of one network, and where the kernel runs them.
///
/// Dropping it leaves the data path up.
#[derive(Debug)]
pub(crate) struct Engine {
    connection: Connection,
    monitor: Monitor,
    programs: Programs,
    maps: Arc<Mutex<Maps>>,
    owner: Owner,
    /// On the egress of the tunnel device, and on the ingress of the uplink.
    encap: Option<Hook>,
    decap: Option<Hook>,
}

/// Counts what the programs do.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Arc<Mutex<Maps>>);

impl Meter {
    pub(crate) fn counts(&self) -> Counts {
        locked(&self.0).counts()
    }

    pub(crate) fn is_of(&self, engine: &Engine) -> bool {
        Arc::ptr_eq(&self.0, &engine.maps)
    }
}

impl Engine {
    /// Loads the programs. The kernel runs them from the next [`sync`](Self::sync) on.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if the kernel refuses.
    pub(crate) fn open(namespace: &Namespace, owner: &Owner) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Open { source };
        let monitor = Monitor::open_for(namespace, &[Topic::TrafficControl]).map_err(failed)?;
        let connection = Connection::open(namespace).map_err(failed)?;
        let (programs, maps) = programs::load()?;
        let maps = Arc::new(Mutex::new(maps));
        Ok(Self {
            connection,
            monitor,
            programs,
            maps,
            owner: owner.clone(),
            encap: None,
            decap: None,
        })
    }

    /// Makes maps and filters what `plan` ask for. `tunnel` is the index of the tunnel device. The filters come last, that of
    /// received packets first.
    ///
    /// # Errors
    ///
    /// [`BpfError`] with the first thing that the kernel refused.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves part of the work done; the next call does the rest.
    pub(crate) async fn sync(
        &mut self,
        plan: &ForwardingPlan,
        tunnel: u32,
    ) -> Result<Changes, BpfError> {
        let mut changes = Changes::default();
        let link = link_by_index(&mut self.connection, plan.link)
            .await
            .map_err(|source| BpfError::filter("look at the uplink", plan.link, source))?;
        let mut config = Config {
            tunnel,
            source_check: plan.source_check,
            has_link_header: link.is_none_or(|link| link.mac.is_some()),
            path_mtu_discovery: plan.path_mtu_discovery,
            ipv4: None,
            ipv6: None,
            port: plan.port,
        };
        for ip in &plan.local {
            match ip {
                IpAddr::V4(v4) => config.ipv4 = Some(*v4),
                IpAddr::V6(v6) => config.ipv6 = Some(*v6),
            }
        }
        {
            let mut maps = locked(&self.maps);
            maps.fill(&plan.endpoints, &plan.in_kernel, &mut changes)?;
            maps.configure(config, &mut changes)?;
        }
        let (connection, owner) = (&mut self.connection, &self.owner);
        for (hook, link, direction, program) in [
            (&mut self.decap, plan.link, Direction::In, self.programs.decap),
            (&mut self.encap, tunnel, Direction::Out, self.programs.encap),
        ] {
            if let Some(other) = hook.take_if(|hook| hook.link != link) {
                // With a device that is gone, its filter is as well.
                let _ = other.remove(connection).await;
            }
            let hook = hook.get_or_insert_with(|| Hook::new(link, direction, owner));
            hook.ensure(connection, program, &mut changes).await?;
        }
        Ok(changes)
    }

    /// Resolves when somebody else has changed filters of the uplink or the tunnel device, where ours may be gone.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if that can no longer be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn drifted(&mut self) -> Result<(), BpfError> {
        loop {
            let notice = self.monitor.next().await.map_err(|source| BpfError::Watch { source })?;
            let link = match notice {
                Notice::Lost => return Ok(()),
                Notice::Added { subject: Subject::TrafficControl(link), port, .. }
                | Notice::Removed { subject: Subject::TrafficControl(link), port }
                    if port != self.connection.port() =>
                {
                    link
                }
                _ => continue,
            };
            if [&self.encap, &self.decap].into_iter().flatten().any(|hook| hook.link == link) {
                debug!(link, "filters changed");
                return Ok(());
            }
        }
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.maps))
    }

    /// Removes the filters.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if the kernel refuses.
    pub(crate) async fn teardown(mut self) -> Result<(), BpfError> {
        let mut removed = Ok(false);
        for hook in [self.decap, self.encap].into_iter().flatten() {
            removed = removed.and(hook.remove(&mut self.connection).await);
        }
        removed.map(drop)
    }
}

/// Removes the filters that an earlier process has left on `uplink` and `tunnel`, for an engine that is without programs: the socket
/// and the device are to have all packets. Returns whether there was one.
///
/// # Errors
///
/// [`BpfError`] if the kernel refuses.
///
/// # Cancel safety
///
/// Dropping it may leave a clsact qdisc.
pub(crate) async fn remove_leftover(
    namespace: &Namespace,
    uplink: u32,
    tunnel: u32,
    owner: &Owner,
) -> Result<bool, BpfError> {
    let mut connection = Connection::open(namespace).map_err(|source| BpfError::Open { source })?;
    // In this order: peers whose packets are decapsulated still send such ones.
    let sent = Hook::new(tunnel, Direction::Out, owner).remove(&mut connection).await;
    let received = Hook::new(uplink, Direction::In, owner).remove(&mut connection).await;
    Ok(sent? | received?)
}

fn locked(maps: &Mutex<Maps>) -> MutexGuard<'_, Maps> {
    maps.lock().unwrap_or_else(PoisonError::into_inner)
}
