//! Two hosts with a node and a pod each.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use flannel_core::NetworkConfig;
use flannel_netlink::{
    list_routes,
    state::{IpFamily, Object, Route},
};
use flannel_testbed::{Blocks, Host, Pod};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{
    exact::State,
    faults::{Injected, Signals, device, peer, uplink},
};
use crate::{
    follow::Follower,
    network::{Plan, network, network_with},
    program::{Node, Program, subnet},
    session::Session,
    site::Site,
};

/// A cluster in which packets flow. The first host is the one that suffers.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) pods: [Pod; 2],
    /// The subnet of the second host.
    pub(super) peer: Blocks,
    nodes: [Node; 2],
    site: Site,
}

impl Cluster {
    pub(super) async fn build(
        session: &Session,
        program: &Program,
        plan: Plan<'_>,
    ) -> Result<Self> {
        let site = Site::build(session, 2, plan).await?;
        let [a, b] = site.hosts() else { unreachable!("there are two hosts") };
        let start = |host| Node::start(program, host, &site.leases);
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
        Ok(Self { pods, peer: subnets[1], nodes, site })
    }

    /// The host that suffers.
    pub(super) fn host(&self) -> &Host {
        self.site.host(0)
    }

    /// What both kernels hold now.
    pub(super) async fn state(&self) -> Result<[State; 2]> {
        let [a, b] = self.site.hosts() else { unreachable!("there are two hosts") };
        Ok([State::of(&a.snapshot().await?), State::of(&b.snapshot().await?)])
    }

    /// One for each host.
    pub(super) fn followers(&self) -> Result<[Follower; 2]> {
        Ok([Follower::open(self.site.host(0))?, Follower::open(self.site.host(1))?])
    }

    /// Waits until both kernels hold what is wanted, whatever they do with a `foreign` address, and returns when they did.
    pub(super) async fn until(
        &self,
        wanted: &[State; 2],
        foreign: Option<IpAddr>,
        followers: &mut [Follower; 2],
    ) -> Result<Instant> {
        loop {
            for follower in &mut *followers {
                follower.written()?;
            }
            let now = Instant::now();
            if self.state().await?.map(|state| state.without(foreign)) == *wanted {
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
        let host = self.site.host(0);
        let node = &mut self.nodes[0];
        for number in 0..if signals == Signals::InTurns { times } else { 1 } {
            match signals {
                Signals::Terminate => node.process.terminate()?,
                Signals::InTurns if number % 2 == 1 => node.process.terminate()?,
                _ => node.process.kill()?,
            }
            node.process.wait().await?;
            *node = Node::start(program, host, &self.site.leases)?;
            node.ready(PATIENCE).await?;
        }
        Ok(Injected::default())
    }
    /// Gives the network another backend and then its own again, with new nodes each time. Returns when the last ones are
    /// started.
    pub(super) async fn change(
        &mut self,
        program: &Program,
        plan: Plan<'_>,
        other: Value,
    ) -> Result<Injected> {
        let before = self.mine().await?;
        self.reconfigure(program, &network_with(other, plan.family)?).await?;
        for node in &mut self.nodes {
            node.ready(PATIENCE).await?;
        }
        let after = self.mine().await?;
        let left: Vec<_> = before.intersection(&after).collect();
        ensure!(left.is_empty(), "of the backend before there was left at readiness: {left:?}");
        self.reconfigure(program, &network(plan.backend, plan.family)?).await?;
        Ok(Injected::default())
    }

    /// Ends both nodes, changes the configuration, and starts them again.
    async fn reconfigure(&mut self, program: &Program, config: &NetworkConfig) -> Result<()> {
        for node in &mut self.nodes {
            node.process.terminate()?;
            node.process.wait().await?;
            node.forget_backend()?;
        }
        self.site.leases.reconfigure(config).await?;
        for (node, host) in self.nodes.iter_mut().zip(self.site.hosts()) {
            *node = Node::start(program, host, &self.site.leases)?;
        }
        Ok(())
    }

    /// What a backend has on the first host for its peer: its device, and the device of its route.
    async fn mine(&self) -> Result<BTreeSet<String>> {
        let mut connection = self.host().connect()?;
        let device = device(&mut connection).await?;
        let uplink = uplink(&mut connection).await?;
        let routes = list_routes(&mut connection, Route::MAIN, IpFamily::V4).await?;
        let peer = peer(self)?;
        let direct = |route: &&Route| route.destination == peer && route.link == Some(uplink.index);
        let direct = routes.iter().filter(direct).map(|route| Object::Route(*route).to_string());
        Ok(device.into_iter().map(|device| device.name).chain(direct).collect())
    }
}

/// What a node may take to be ready, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(30);

const LOOK_AGAIN: Duration = Duration::from_millis(10);
