use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flannel_netlink::{Connection, KernelError};
use futures::future::BoxFuture;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{Host, TestbedError};

/// Somebody else on the host who alters the kernel's state at an interval. Made by [`Host::meddle`]; stops when dropped.
#[derive(Debug)]
pub struct Meddler {
    deeds: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

impl Meddler {
    /// How often it has done its deed with success.
    pub fn deeds(&self) -> u64 {
        self.deeds.load(Ordering::Relaxed)
    }
}

/// Another process that interferes.
impl Host {
    /// Does `deed` in the host's namespace now and then at every interval, through a connection of its own. A deed that
    /// fails, for example because there is nothing to delete, is not counted and tried again at the next interval.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Namespace`] when the connection cannot be opened.
    ///
    /// # Panics
    ///
    /// When `every` is zero, or outside a tokio runtime.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example(host: flannel_testbed::Host, route: flannel_netlink::state::Route) -> Result<(), flannel_testbed::TestbedError> {
    /// use std::time::Duration;
    ///
    /// use futures::FutureExt as _;
    ///
    /// let meddler = host.meddle(Duration::from_millis(100), move |connection| {
    ///     connection.apply_one(route.delete()).boxed()
    /// })?;
    /// // ... the node repairs the route again and again ...
    /// assert!(meddler.deeds() > 3);
    /// # Ok(())
    /// # }
    /// ```
    pub fn meddle<D>(&self, every: Duration, mut deed: D) -> Result<Meddler, TestbedError>
    where
        D: for<'a> FnMut(&'a mut Connection) -> BoxFuture<'a, Result<(), KernelError>>
            + Send
            + 'static,
    {
        let mut connection = self.connect()?;
        let deeds = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&deeds);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                ticks.tick().await;
                match deed(&mut connection).await {
                    Ok(()) => drop(counted.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => tracing::trace!(%error, "a meddler failed"),
                }
            }
        });
        Ok(Meddler { deeds, _task: task })
    }
}
