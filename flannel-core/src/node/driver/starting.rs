//! What comes before the loop: the configuration, the lease, and our own end of the data path.

use std::pin::{Pin, pin};

use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tracing::{Span, info};

use super::{Driver, End};
use crate::{
    backend::{BackendError, Network},
    config::NetworkConfig,
    fault::Activity,
    lease::Lease,
    node::{NodeError, config_watch::ConfigWatch, failure::Failure, session::Session},
    public_address::check_published,
    random::SplitMix64,
    store::SubnetLease,
};

impl Driver {
    /// Everything up to the first lease.
    pub(super) async fn acquire(
        &mut self,
    ) -> Result<(NetworkConfig, (Instant, Box<dyn SubnetLease>)), NodeError> {
        let mut random = self.fork();
        let Self { store, backend, .. } = &*self;
        let random = &mut random;
        let config = self.first_config(random).await?;
        let span = Span::current();
        if self.options.network.is_none() {
            span.record("network", blocks(&config));
        }
        span.record("backend", config.backend().kind());
        self.status.send_modify(|status| status.config = Some(config.clone()));
        let previous = self.persist(Activity::Acquire, random, || store.previous()).await?;
        let advertise = || backend.advertise(previous.as_ref());
        let attrs = self.persist(Activity::Advertise, random, advertise).await?;
        check_published(&attrs)
            .map_err(|source| NodeError::Backend(BackendError::Address { source }))?;
        let acquire = || {
            let (began, acquired) = (Instant::now(), store.acquire(&attrs));
            async move { acquired.await.map(|lease| (began, lease)) }
        };
        let lease = self.persist(Activity::Acquire, random, acquire).await?;
        let held = lease.1.lease().clone();
        if let (None, Some(node)) = (&self.options.name, &held.node) {
            span.record("node", node.as_str());
        }
        info!(subnet = %held.subnet, "lease held");
        self.status.send_modify(|status| status.lease = Some(held));
        Ok((config, lease))
    }

    /// Brings up the data path of `lease`. That may take long; the lease is kept meanwhile.
    pub(super) async fn start<S: Future<Output = ()>>(
        &mut self,
        session: &mut Session,
        lease: &Lease,
        stop: &mut Pin<&mut S>,
    ) -> Result<Result<Box<dyn Network>, End>, NodeError> {
        let mut random = self.fork();
        let this = &*self;
        let mut started =
            pin!(this.persist(Activity::Start, &mut random, || this.backend.start(lease)));
        loop {
            select! {
                biased;
                () = stop.as_mut() => return Ok(Err(End::Stop)),
                () = session.pings.answer() => {}
                outcome = session.keeper.next() => if let Some(moved) = this.lease_changed(session, outcome)? {
                    return Ok(Err(End::Moved(moved)));
                },
                network = &mut started => return network.map(Ok),
            }
        }
    }

    /// The configuration as soon as there is one.
    pub(super) async fn first_config(
        &self,
        random: &mut SplitMix64,
    ) -> Result<NetworkConfig, NodeError> {
        let mut changes = None;
        let mut backoff = self.backoff();
        loop {
            let error = match timeout(self.options.deadline, self.store.config()).await {
                Ok(Ok(config)) => {
                    self.succeed(Activity::Config);
                    return Ok(config);
                }
                Ok(Err(error)) if !error.is_retryable() => return Err(NodeError::Store(error)),
                Ok(Err(error)) => error,
                Err(elapsed) => Failure::late(Activity::Config.to_string(), elapsed),
            };
            self.fail(Activity::Config, &error);
            let wait = sleep(backoff.after_failure(random.next_u64()));
            let shortest = self.options.retry_shortest;
            let changes = changes.get_or_insert_with(|| ConfigWatch::new(&*self.store, shortest));
            let mut wait = pin!(wait);
            loop {
                select! {
                    biased;
                    () = &mut wait => break,
                    change = changes.next(random.next_u64()) => if change.is_ok() { break },
                }
            }
        }
    }

    /// Calls until it succeeds or fails for good.
    pub(super) async fn persist<T, E: Failure, F: Future<Output = Result<T, E>>>(
        &self,
        activity: Activity,
        random: &mut SplitMix64,
        call: impl Fn() -> F,
    ) -> Result<T, NodeError> {
        let mut backoff = self.backoff();
        loop {
            let error = match timeout(self.options.deadline, call()).await {
                Ok(Ok(value)) => {
                    self.succeed(activity);
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(elapsed) => E::late(activity.to_string(), elapsed),
            };
            if !error.is_retryable() {
                return Err(error.into_final());
            }
            self.fail(activity, &error);
            sleep(backoff.after_failure(random.next_u64())).await;
        }
    }
}

/// The address blocks of a network, for people.
fn blocks(config: &NetworkConfig) -> String {
    let ipv4 = config.ipv4().map(|range| range.network().to_string());
    let ipv6 = config.ipv6().map(|range| range.network().to_string());
    ipv4.into_iter().chain(ipv6).collect::<Vec<_>>().join(",")
}
