//! The ways from pod to pod that are compared.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use flannel_testbed::{Endpoint, Host, Pod, Testbed};
use futures::future::BoxFuture;

use super::{
    forwarder,
    kernel::{self, MTU},
    wireguard,
};
use crate::{
    args::{Between, Family, StoreKind},
    network::{Plan, own_block},
    program::{Node, Program, subnet},
    session::Session,
    site::{Site, testbed},
};

/// One way from pod to pod.
#[derive(Debug)]
pub(super) struct Path<'a> {
    /// The name of its row.
    pub(super) name: String,
    kind: Kind<'a>,
}

#[derive(Debug)]
enum Kind<'a> {
    /// Nodes on both hosts.
    Nodes(&'a Program, &'a str),
    Reference(&'static Reference),
}

/// A way that the benchmark makes by itself: two hosts with a pod each are there, and what leads from one to the other is
/// not.
pub(super) struct Reference {
    pub(super) name: &'static str,
    /// What the path takes from each packet of the link, bytes.
    overhead: fn(Family) -> u32,
    /// Why it cannot be made here, if it cannot.
    missing: fn() -> Option<String>,
    /// Makes what leads from pod to pod, and returns what has to live as long.
    connect: for<'a> fn(&'a [Host], Family) -> BoxFuture<'a, Result<Running>>,
}

/// What keeps a path alive; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Running(
    #[expect(dead_code, reason = "it is there to be dropped")] Box<dyn fmt::Debug>,
);

impl Running {
    pub(super) fn new(what: impl fmt::Debug + 'static) -> Self {
        Self(Box::new(what))
    }
}

/// Everything that is compared with, in the order of the rows.
const REFERENCES: [Reference; 4] = [
    Reference { name: RAW, overhead: |_| 0, missing: || None, connect: kernel::routes },
    Reference { name: VXLAN, overhead: kernel::overhead, missing: || None, connect: kernel::vxlan },
    Reference {
        name: FORWARDER,
        overhead: forwarder::overhead,
        missing: forwarder::missing,
        connect: forwarder::start,
    },
    Reference {
        name: WIREGUARD_GO,
        overhead: wireguard::overhead,
        missing: wireguard::missing,
        connect: wireguard::start,
    },
];

/// A path that packets can take.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) pods: [Pod; 2],
    nodes: Vec<Node>,
    _running: Option<Running>,
    _site: Option<Site>,
    testbed: Option<Testbed>,
}

impl<'a> Path<'a> {
    /// All paths that were asked for, references first.
    pub(super) fn all(session: &'a Session, only: &[String]) -> Vec<Self> {
        let references = REFERENCES.iter().map(|reference| Self {
            name: reference.name.into(),
            kind: Kind::Reference(reference),
        });
        let nodes = session.subjects();
        let nodes = nodes
            .map(|(program, backend, name)| Self { name, kind: Kind::Nodes(program, backend) });
        let asked = |path: &Self| {
            only.is_empty() || only.iter().any(|only| path.name.contains(only.as_str()))
        };
        references.chain(nodes).filter(asked).collect()
    }

    /// Why it cannot be built here, if it cannot.
    pub(super) fn missing(&self) -> Option<String> {
        match self.kind {
            Kind::Nodes(..) => None,
            Kind::Reference(reference) => (reference.missing)(),
        }
    }

    /// Builds two hosts with a pod each, and what leads from one to the other.
    pub(super) async fn build(&self, session: &Session, family: Family) -> Result<Built> {
        match self.kind {
            Kind::Nodes(program, backend) => nodes(session, program, backend, family).await,
            Kind::Reference(reference) => {
                let testbed = testbed(2, family).await?;
                let [a, b] = testbed.hosts() else { unreachable!("there are two hosts") };
                let mtu = MTU - (reference.overhead)(family);
                let pods = [
                    a.add_pod_with_mtu(own_block(0, family), mtu).await?,
                    b.add_pod_with_mtu(own_block(1, family), mtu).await?,
                ];
                let running = (reference.connect)(testbed.hosts(), family).await?;
                let (testbed, _running) = (Some(testbed), Some(running));
                Ok(Built { pods, nodes: Vec::new(), _running, _site: None, testbed })
            }
        }
    }
}

async fn nodes(
    session: &Session,
    program: &Program,
    backend: &str,
    family: Family,
) -> Result<Built> {
    let plan = Plan { store: StoreKind::File, backend, family, peers: 0 };
    let site = Site::build(session, 2, plan).await?;
    let start = |host| Node::start(program, host, &site.leases);
    let mut nodes = site.hosts().iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut pods = Vec::new();
    for (host, node) in site.hosts().iter().zip(&mut nodes) {
        let (env, _) = node.ready(PATIENCE).await?;
        let mtu = env.mtu.context("the subnet file names no MTU")?;
        pods.push(host.add_pod_with_mtu(subnet(&env)?, mtu).await?);
    }
    let pods = pods.try_into().ok().context("there are two hosts")?;
    Ok(Built { pods, nodes, _running: None, _site: Some(site), testbed: None })
}

impl Built {
    pub(super) fn hosts(&self) -> &[Host] {
        match (&self._site, &self.testbed) {
            (Some(site), _) => site.hosts(),
            (None, Some(testbed)) => testbed.hosts(),
            (None, None) => &[],
        }
    }

    /// Who sends, and who receives.
    pub(super) fn ends(&self, between: Between) -> [Endpoint; 2] {
        let end = |n: usize| match between {
            Between::Hosts => self.hosts()[n].gateway_of(&self.pods[n]),
            Between::Masqueraded | Between::Pods => self.pods[n].endpoint(),
        };
        [end(0), end(1)]
    }

    /// Ends the nodes.
    pub(super) async fn stop(self) -> Result<()> {
        for node in self.nodes {
            node.stop().await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

pub(super) const RAW: &str = "static routes, by hand";
pub(super) const FORWARDER: &str = "forwarder, a call a packet";
pub(super) const WIREGUARD_GO: &str = "wireguard-go";
pub(super) const VXLAN: &str = "vxlan, by hand";

/// What a node may take to be ready, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(30);
