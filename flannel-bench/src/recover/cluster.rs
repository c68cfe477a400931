//! Two hosts with a node and a pod each.

use std::time::Duration;

use anyhow::{Context, Result};
use flannel_testbed::{Blocks, Host, Pod, Testbed};
use tokio::time::{Instant, timeout};

use super::{
    exact::State,
    faults::{Injected, Signals},
};
use crate::{
    follow::Follower,
    leases::Leases,
    program::{Node, Program, subnet},
    session::{Session, testbed},
};

/// A cluster in which packets flow. The first host is the one that suffers.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) pods: [Pod; 2],
    /// The subnet of the second host.
    pub(super) peer: Blocks,
    nodes: [Node; 2],
    leases: Leases,
    testbed: Testbed,
}

impl Cluster {
    pub(super) async fn build(session: &Session, program: &Program, backend: &str) -> Result<Self> {
        let leases = Leases::build(&session.scratch, backend, 0).await?;
        let testbed = testbed(2).build().await?;
        let [a, b] = testbed.hosts() else { unreachable!("there are two hosts") };
        let start = |host| Node::start(program, host, &leases.store(), leases.folder());
        let mut nodes = [start(a)?, start(b)?];
        let (mut pods, mut subnets) = (Vec::new(), Vec::new());
        for (host, node) in [a, b].into_iter().zip(&mut nodes) {
            let (env, _) = node.ready(PATIENCE).await?;
            let mtu = env.mtu.context("the subnet file names no MTU")?;
            subnets.push(subnet(&env)?);
            pods.push(host.add_pod_with_mtu(subnet(&env)?, mtu).await?);
        }
        let pods: [Pod; 2] = pods.try_into().ok().context("there are two hosts")?;
        let connected = async { while pods[0].ping(pods[1].ip()).await.is_err() {} };
        timeout(PATIENCE, connected).await.context("the pods never reached each other")?;
        Ok(Self { pods, peer: subnets[1], nodes, leases, testbed })
    }

    /// The host that suffers.
    pub(super) fn host(&self) -> &Host {
        self.testbed.host(0)
    }

    /// What both kernels hold now.
    pub(super) async fn state(&self) -> Result<[State; 2]> {
        let [a, b] = self.testbed.hosts() else { unreachable!("there are two hosts") };
        Ok([State::of(&a.snapshot().await?), State::of(&b.snapshot().await?)])
    }

    /// One for each host.
    pub(super) fn followers(&self) -> Result<[Follower; 2]> {
        Ok([Follower::open(self.testbed.host(0))?, Follower::open(self.testbed.host(1))?])
    }

    /// Waits until both kernels hold what is wanted, and returns when they did.
    pub(super) async fn until(
        &self,
        wanted: &[State; 2],
        followers: &mut [Follower; 2],
    ) -> Result<Instant> {
        loop {
            for follower in &mut *followers {
                follower.written()?;
            }
            let now = Instant::now();
            if self.state().await? == *wanted {
                return Ok(now);
            }
            let [a, b] = &mut *followers;
            tokio::select! {
                heard = a.any() => heard?,
                heard = b.any() => heard?,
                // The kernel does not tell of everything.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Ends the first node and starts it again, several times.
    pub(super) async fn restart(
        &mut self,
        program: &Program,
        signals: Signals,
        times: u32,
    ) -> Result<Injected> {
        let host = self.testbed.host(0);
        let node = &mut self.nodes[0];
        for number in 0..if signals == Signals::InTurns { times } else { 1 } {
            match signals {
                Signals::Terminate => node.process.terminate()?,
                Signals::InTurns if number % 2 == 1 => node.process.terminate()?,
                _ => node.process.kill()?,
            }
            node.process.wait().await?;
            *node = Node::start(program, host, &self.leases.store(), self.leases.folder())?;
            node.ready(PATIENCE).await?;
        }
        Ok(Injected::default())
    }
}

/// What a node may take to be ready, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_AGAIN: Duration = Duration::from_millis(10);
