//! Waiting for kernel objects by the kernel's own notifications.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, bail};
use flannel_netlink::{
    Connection, Monitor, Notice, Subject, list_routes,
    state::{IpFamily, Object, Route},
};
use flannel_testbed::Host;
use ipnetwork::IpNetwork;
use tokio::time::{Instant, timeout, timeout_at};

/// Hears of every change on one host.
#[derive(Debug)]
pub(crate) struct Follower {
    monitor: Monitor,
    connection: Connection,
    /// How often notifications were lost, so that a listing had to tell.
    pub(crate) lost: u64,
}

impl Follower {
    pub(crate) fn open(host: &Host) -> Result<Self> {
        let monitor = Monitor::open(host.namespace());
        let monitor =
            monitor.with_context(|| format!("cannot hear of changes on {}", host.name()))?;
        Ok(Self { monitor, connection: host.connect()?, lost: 0 })
    }

    /// Waits until there is a route to each of `blocks` and then nothing more is written for a while. Returns when the last
    /// object was written.
    pub(crate) async fn all_routes(
        &mut self,
        blocks: impl IntoIterator<Item = IpNetwork>,
        patience: Duration,
    ) -> Result<Instant> {
        let mut missing: HashSet<IpNetwork> = blocks.into_iter().collect();
        let wanted = missing.clone();
        let deadline = Instant::now() + patience;
        let mut last = Instant::now();
        while !missing.is_empty() {
            let Ok(notice) = timeout_at(deadline, self.monitor.next()).await else {
                let example = missing.iter().next().expect("it is not empty");
                bail!(
                    "{} routes were not there after {patience:?}, such as {example}",
                    missing.len()
                );
            };
            match notice? {
                Notice::Added { subject: Subject::Object(Object::Route(route)), .. } => {
                    last = Instant::now();
                    missing.remove(&route.destination);
                }
                Notice::Removed { subject: Subject::Object(Object::Route(route)), .. }
                    if wanted.contains(&route.destination) =>
                {
                    missing.insert(route.destination);
                }
                Notice::Lost => {
                    self.lost += 1;
                    missing.clone_from(&wanted);
                    let routes =
                        list_routes(&mut self.connection, Route::MAIN, IpFamily::V4).await?;
                    for route in routes {
                        missing.remove(&route.destination);
                    }
                    last = Instant::now();
                }
                _ => {}
            }
        }
        // Objects that are written after the route.
        while let Ok(notice) = timeout(QUIET, self.monitor.next()).await {
            if is_written(&notice?) {
                last = Instant::now();
            }
        }
        Ok(last)
    }

    /// Waits until the route to `block` is there (or gone), and returns when it was.
    pub(crate) async fn route(
        &mut self,
        block: IpNetwork,
        there: bool,
        patience: Duration,
    ) -> Result<Instant> {
        let happened = async {
            loop {
                let (subject, added) = match self.monitor.next().await? {
                    Notice::Added { subject, .. } => (subject, true),
                    Notice::Removed { subject, .. } => (subject, false),
                    _ => bail!("notifications were lost"),
                };
                let Subject::Object(Object::Route(route)) = subject else { continue };
                if route.destination == block && added == there {
                    return Ok(Instant::now());
                }
            }
        };
        let what = if there { "there" } else { "gone" };
        let late = || format!("the route to {block} was not {what} after {patience:?}");
        timeout(patience, happened).await.with_context(late)?
    }

    /// Waits for any notification.
    pub(crate) async fn any(&mut self) -> Result<()> {
        self.monitor.next().await?;
        Ok(())
    }

    /// Counts what was written since the last call to anything here.
    pub(crate) fn written(&mut self) -> Result<u64> {
        let mut count = 0;
        while let Some(notice) = self.monitor.next_waiting()? {
            count += u64::from(is_written(&notice));
        }
        Ok(count)
    }
}

/// Whether somebody wrote it: neighbours and forwarding entries that the kernel learns, forgets and probes do not count.
const fn is_written(notice: &Notice) -> bool {
    let (Notice::Added { subject, .. } | Notice::Removed { subject, .. }) = notice else {
        return false;
    };
    match subject {
        Subject::Object(Object::Neighbour(entry)) => entry.permanent,
        Subject::Object(Object::ForwardingEntry(entry)) => entry.permanent,
        Subject::Object(_) | Subject::Link(_) => true,
        _ => false,
    }
}

/// So long without a notification ends a convergence.
const QUIET: Duration = Duration::from_millis(300);
