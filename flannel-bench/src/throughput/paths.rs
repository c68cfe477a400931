//! The ways from pod to pod that are compared.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use flannel_netlink::{
    LinkSpec, LinkSpecKind, ensure_link,
    state::{Address, ForwardingEntry, MacAddress, Neighbour, Object, Route, Vxlan},
};
use flannel_testbed::{Blocks, Host, Pod, Testbed};

use crate::{
    leases::Leases,
    program::{Node, Program, subnet},
    session::{Session, testbed},
};

/// One way from pod to pod.
#[derive(Debug)]
pub(super) enum Path<'a> {
    /// Nodes on both hosts, and the name of the row.
    Nodes(&'a Program, &'a str, String),
    /// Static routes, which nobody can be faster than.
    Raw,
    /// A VXLAN device made with as few calls as possible.
    Vxlan,
}

/// A path that packets can take.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) pods: [Pod; 2],
    nodes: Vec<Node>,
    _leases: Option<Leases>,
    _testbed: Testbed,
}

impl<'a> Path<'a> {
    /// All paths, references first.
    pub(super) fn all(session: &'a Session) -> Vec<Self> {
        let mut paths = vec![Self::Raw, Self::Vxlan];
        let nodes = session.subjects();
        paths.extend(nodes.map(|(program, backend, row)| Self::Nodes(program, backend, row)));
        paths
    }

    pub(super) fn name(&self) -> String {
        match self {
            Self::Nodes(_, _, row) => row.clone(),
            Self::Raw => RAW.into(),
            Self::Vxlan => VXLAN.into(),
        }
    }

    /// Builds two hosts with a pod each, and what leads from one to the other.
    pub(super) async fn build(&self, session: &Session) -> Result<Built> {
        let testbed = testbed(2).build().await?;
        let [a, b] = testbed.hosts() else { unreachable!("there are two hosts") };
        match self {
            Self::Nodes(program, backend, _) => {
                let leases = Leases::build(&session.scratch, backend, 0).await?;
                let start = |host| Node::start(program, host, &leases.store(), leases.folder());
                let mut nodes = vec![start(a)?, start(b)?];
                let mut pods = Vec::new();
                for (host, node) in [a, b].into_iter().zip(&mut nodes) {
                    let (env, _) = node.ready(PATIENCE).await?;
                    let mtu = env.mtu.context("the subnet file names no MTU")?;
                    pods.push(host.add_pod_with_mtu(subnet(&env)?, mtu).await?);
                }
                let pods = pods.try_into().ok().context("there are two hosts")?;
                Ok(Built { pods, nodes, _leases: Some(leases), _testbed: testbed })
            }
            Self::Raw => {
                let pods = [a.add_pod(blocks(0)).await?, b.add_pod(blocks(1)).await?];
                a.add_route(blocks(1), b).await?;
                b.add_route(blocks(0), a).await?;
                Ok(Built { pods, nodes: Vec::new(), _leases: None, _testbed: testbed })
            }
            Self::Vxlan => {
                let mtu = MTU - OVERHEAD;
                let pods = [
                    a.add_pod_with_mtu(blocks(0), mtu).await?,
                    b.add_pod_with_mtu(blocks(1), mtu).await?,
                ];
                tunnel(a, 0, b.ip()).await?;
                tunnel(b, 1, a.ip()).await?;
                Ok(Built { pods, nodes: Vec::new(), _leases: None, _testbed: testbed })
            }
        }
    }
}

impl Built {
    /// Ends the nodes.
    pub(super) async fn stop(self) -> Result<()> {
        for node in self.nodes {
            node.stop().await?;
        }
        Ok(())
    }
}

/// Makes host number `own` of two one end of a VXLAN whose other end is at `remote`.
async fn tunnel(host: &Host, own: u8, remote: IpAddr) -> Result<()> {
    let mut connection = host.connect()?;
    let mut vxlan = Vxlan::new(VNI);
    (vxlan.port, vxlan.local) = (Some(PORT), Some(host.ip()));
    let mut spec = LinkSpec::new("vxlan1", LinkSpecKind::Vxlan(vxlan));
    (spec.mac, spec.mtu) = (Some(mac(own)), Some(MTU - OVERHEAD));
    let (device, _) = ensure_link(&mut connection, &spec).await?;
    let other = 1 - own;
    let block = |number| blocks(number).ipv4().context("the blocks are IPv4");
    let gateway = block(other)?.network();
    let mut route =
        Route::new(block(other)?.into(), STATIC).via_gateway(gateway.into(), device.index);
    route.onlink = true;
    let objects: [Object; 4] = [
        Address::new(device.index, IpAddr::from(block(own)?.network()).into()).into(),
        Neighbour::new(device.index, gateway.into(), mac(other)).into(),
        ForwardingEntry::new(device.index, mac(other), remote).into(),
        route.into(),
    ];
    for object in objects {
        let written = connection.apply_one(object.replace()).await;
        written.with_context(|| format!("cannot write {object} on {}", host.name()))?;
    }
    Ok(())
}

fn blocks(number: u8) -> Blocks {
    let block = format!("10.0.{}.0/24", number + 1);
    block.parse().expect("it is a block")
}

const fn mac(number: u8) -> MacAddress {
    MacAddress::new([0x02, 0xf3, 0, 0, 0, number + 1])
}

pub(super) const RAW: &str = "static routes, by hand";
pub(super) const VXLAN: &str = "vxlan, by hand";

/// The testbed's, as on Ethernet.
const MTU: u32 = 1500;
/// Of VXLAN over IPv4: outer IP, UDP and VXLAN headers, inner Ethernet header.
const OVERHEAD: u32 = 20 + 8 + 8 + 14;
/// flannel's own.
const VNI: u32 = 1;
/// The kernel's, which flannel uses on Linux.
const PORT: u16 = 8472;
/// Routes made by an administrator, linux/rtnetlink.h.
const STATIC: u8 = 4;
/// What a node may take to be ready, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(30);
