//! The contract of [`Backend`] and [`Network`](crate::Network) as tests that every backend runs, usually on a real kernel.

use std::{pin::pin, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;

use crate::{
    backend::{Backend, BackendError},
    config::NetworkConfig,
    lease::{Lease, LeaseAttrs},
    subnet::Subnet,
};

mod nodes;

pub use nodes::Nodes;

/// Hosts that can run the backend under test, and the means to look at them and to damage them.
///
/// [`HOSTS`] of them, numbered from 0, none of them touched by the backend yet. The suite runs the backend on all of them
/// and looks mostly at host 0.
#[async_trait]
pub trait NetworkWorld: Send + Sync {
    /// The network that the hosts are in.
    fn config(&self) -> NetworkConfig;

    /// The subnet of a host. Its pods are there and wait for packets.
    fn subnet(&self, host: usize) -> Subnet;

    /// The backend as a process on that host would make it. Called again for a restart.
    fn backend(&self, host: usize) -> Arc<dyn Backend>;

    /// Leases that cannot be followed, made from that of a good peer: each has to be named in the report.
    fn bad(&self, good: &Lease) -> Vec<Lease>;

    /// Whether pods of the two hosts exchange packets in both directions, in every family they have.
    async fn reaches(&self, from: usize, to: usize) -> bool;

    /// Removes or alters what `host` needs to reach `peer`, as another process would.
    async fn damage(&self, host: usize, peer: usize);

    /// Puts things on the host that look as much like ours as others' things can.
    async fn plant_foreign(&self, host: usize);

    /// The host's network state, to compare before and after.
    async fn snapshot(&self, host: usize) -> String;

    /// How many changes the kernel of the host has announced so far.
    async fn writes(&self, host: usize) -> u64;

    /// What a repair may take: a second, from the contract, unless the backend's documentation says otherwise.
    fn repair_time(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// How many hosts the suite uses.
pub const HOSTS: usize = 4;

/// After a sync, peers are reached.
pub async fn reaches_the_goal(world: impl NetworkWorld) {
    let _nodes = Nodes::start(&world).await;
    for from in 0..HOSTS {
        for to in (0..HOSTS).filter(|to| *to != from) {
            assert!(world.reaches(from, to).await, "host {from} does not reach host {to}");
        }
    }
}

/// A second sync writes nothing, by its own count and by the kernel's.
pub async fn a_second_sync_changes_nothing(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    let before = world.writes(0).await;
    assert_eq!(nodes.sync(0).await.writes(), 0);
    assert_eq!(world.writes(0).await - before, 0);
}

/// What somebody else removed or altered is back.
pub async fn repairs_drift(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    world.damage(0, 1).await;
    assert!(!world.reaches(0, 1).await, "the damage shows");
    assert!(nodes.repair(async || world.reaches(0, 1).await).await, "not repaired in time");
    assert!(world.reaches(0, 2).await);
}

/// A peer that left is not reached any more, and the others are.
pub async fn forgets_who_left(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    assert!(nodes.sync_other(0, 1, vec![]).await.removed > 0);
    assert!(!world.reaches(0, 1).await);
    assert!(world.reaches(0, 2).await);
}

/// The same for a peer that left while no node ran.
pub async fn forgets_who_left_while_nobody_ran(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    nodes.restart(&world).await;
    assert!(world.reaches(0, 1).await, "a restart keeps the data path");
    nodes.sync_other(0, 1, vec![]).await;
    assert!(!world.reaches(0, 1).await);
    assert!(world.reaches(0, 2).await);
}

/// A peer whose lease changed is served by the new one, and nothing is left of the old one.
pub async fn follows_a_changed_peer(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    // Host 2 would know the way otherwise.
    nodes.sync_other(2, 1, vec![]).await;
    let moved = Lease::new(nodes.lease(1).subnet, nodes.lease(2).attrs.clone());
    nodes.sync_other(0, 1, vec![moved]).await;
    assert!(!world.reaches(0, 1).await);
    nodes.sync(0).await;
    assert!(world.reaches(0, 1).await);
    assert!(world.reaches(0, 2).await);
}

/// A restarted node takes over what is there and writes nothing.
pub async fn a_restart_adopts_what_is_there(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    let before = world.writes(0).await;
    nodes.restart(&world).await;
    assert_eq!(nodes.sync(0).await.writes(), 0);
    assert_eq!(world.writes(0).await - before, 0);
    assert!(world.reaches(0, 1).await);
}

/// What others put there stays, whatever we do.
pub async fn leaves_foreign_state_alone(world: impl NetworkWorld) {
    world.plant_foreign(0).await;
    let before = world.snapshot(0).await;
    let mut nodes = Nodes::start(&world).await;
    nodes.sync_other(0, 1, vec![]).await;
    nodes.restart(&world).await;
    nodes.sync(0).await;
    teardown(nodes).await.expect("teardown");
    assert_eq!(world.snapshot(0).await, before);
}

/// Taking the data path down leaves the host as it was.
pub async fn teardown_removes_all_we_made(world: impl NetworkWorld) {
    let before = world.snapshot(0).await;
    let nodes = Nodes::start(&world).await;
    assert_ne!(world.snapshot(0).await, before);
    teardown(nodes).await.expect("teardown");
    assert_eq!(world.snapshot(0).await, before);
}

/// A sync that is dropped at any await leaves nothing that the next one does not put right.
pub async fn survives_being_dropped_at_any_await(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    let all = nodes.peers(0, nodes.leases.clone());
    let fewer = nodes.peers(0, nodes.leases[..2].to_vec());
    for polls in 0.. {
        let done = within_polls(nodes.networks[0].sync(&fewer), polls).await.is_some();
        within_polls(nodes.networks[0].sync(&all), polls).await;
        nodes.sync(0).await;
        assert!(world.reaches(0, 1).await, "after {polls} polls");
        assert!(world.reaches(0, 3).await, "after {polls} polls");
        assert_eq!(nodes.sync(0).await.writes(), 0, "after {polls} polls");
        if done {
            break;
        }
    }
}

/// A peer that cannot be served is named in the report, and the others are served.
pub async fn a_bad_peer_costs_only_itself(world: impl NetworkWorld) {
    let mut nodes = Nodes::start(&world).await;
    let bad = world.bad(nodes.lease(1));
    assert!(!bad.is_empty());
    let other = Lease::new(
        bad[0].subnet,
        LeaseAttrs { backend_type: "another".into(), ..nodes.lease(1).attrs.clone() },
    );
    for bad in bad.into_iter().chain([other]) {
        let report = nodes.sync_other(0, 3, vec![bad.clone()]).await;
        // It may have one for each address family.
        let mut named: Vec<_> = report.problems.iter().map(|problem| problem.peer).collect();
        named.dedup();
        assert_eq!(named, [bad.subnet], "{bad:?}");
        assert!(world.reaches(0, 1).await);
        assert!(world.reaches(0, 2).await);
    }
    assert_eq!(nodes.sync(0).await.problems, []);
    assert!(world.reaches(0, 3).await);
}

async fn teardown(nodes: Nodes) -> Result<(), BackendError> {
    nodes.into_first().1.teardown().await
}

/// Polls `future` at most `polls` times; `None` if it is not done by then.
pub(crate) async fn within_polls<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => {
                if left == 0 {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    })
    .await
}

/// Makes one test of each clause of the contract.
///
/// Takes an expression that builds a fresh [`NetworkWorld`], evaluated in an async context for each test, and attributes for
/// the tests such as `#[ignore = "..."]`.
#[macro_export]
macro_rules! network_conformance {
    ($world:expr $(, #[$attribute:meta])* $(,)?) => {
        $crate::network_conformance! {
            @clauses [$(#[$attribute])*] $world;
            a_bad_peer_costs_only_itself
            a_restart_adopts_what_is_there
            a_second_sync_changes_nothing
            follows_a_changed_peer
            forgets_who_left
            forgets_who_left_while_nobody_ran
            leaves_foreign_state_alone
            reaches_the_goal
            repairs_drift
            survives_being_dropped_at_any_await
            teardown_removes_all_we_made
        }
    };
    (@clauses $attributes:tt $world:expr; $($clause:ident)*) => {
        $($crate::network_conformance!(@clause $attributes $world; $clause);)*
    };
    (@clause [$(#[$attribute:meta])*] $world:expr; $clause:ident) => {
        $(#[$attribute])*
        #[tokio::test]
        async fn $clause() {
            $crate::testing::network::$clause($world.await).await;
        }
    };
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Mutex};

    use super::*;
    use crate::testing::FakeBackend;

    /// Hosts in memory: the suite itself is tested without a kernel.
    struct FakeWorld {
        hosts: Vec<FakeBackend>,
        started: Mutex<Vec<u64>>,
    }

    async fn world() -> FakeWorld {
        let hosts = (0..HOSTS).map(|n| FakeBackend::new(Ipv4Addr::new(192, 0, 2, 1 + n as u8)));
        FakeWorld { hosts: hosts.collect(), started: Mutex::default() }
    }

    #[async_trait]
    impl NetworkWorld for FakeWorld {
        fn config(&self) -> NetworkConfig {
            r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap()
        }

        fn subnet(&self, host: usize) -> Subnet {
            format!("10.3.{}.0-24", host + 1).parse().unwrap()
        }

        fn backend(&self, host: usize) -> Arc<dyn Backend> {
            self.started.lock().unwrap().push(host as u64);
            Arc::new(self.hosts[host].clone())
        }

        fn bad(&self, good: &Lease) -> Vec<Lease> {
            let attrs = LeaseAttrs { public_ip: None, ..good.attrs.clone() };
            vec![Lease::new("10.3.77.0-24".parse().unwrap(), attrs)]
        }

        async fn reaches(&self, from: usize, to: usize) -> bool {
            let leads = |a: usize, b: usize| {
                let address = Ipv4Addr::new(192, 0, 2, 1 + b as u8);
                self.hosts[a].routes().get(&self.subnet(b)) == Some(&address.into())
            };
            leads(from, to) && leads(to, from)
        }

        async fn damage(&self, host: usize, peer: usize) {
            let subnet = self.subnet(peer);
            self.hosts[host].meddle(|routes| {
                routes.remove(&subnet);
            });
        }

        async fn plant_foreign(&self, _: usize) {}

        async fn snapshot(&self, host: usize) -> String {
            format!("{:?}", self.hosts[host].routes())
        }

        async fn writes(&self, host: usize) -> u64 {
            self.hosts[host].writes()
        }
    }

    crate::network_conformance!(world());
}
