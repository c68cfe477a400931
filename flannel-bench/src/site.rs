//! Hosts, and a store that their nodes share.

use std::time::Duration;

use anyhow::{Context, Result};
use flannel_netlink::{Connection, LinkSpec, LinkSpecKind, Namespace, ensure_link, link_by_name};
use flannel_testbed::{Host, Testbed};
use tokio::time::{sleep, timeout};

use crate::{
    args::{Family, StoreKind},
    leases::Leases,
    network::{Plan, underlay},
    session::Session,
};

/// Hosts with a store.
#[derive(Debug)]
pub(crate) struct Site {
    // Ends before its host.
    pub(crate) leases: Leases,
    testbed: Testbed,
    hosts: usize,
}

impl Site {
    /// Makes so many hosts. A server is on the only one, as a loopback one would be; where there are several it is on one
    /// more, so that it can be reached whatever happens to them.
    pub(crate) async fn build(session: &Session, hosts: u32, plan: Plan<'_>) -> Result<Self> {
        let more = u32::from(plan.store == StoreKind::Etcd && hosts > 1);
        let testbed = testbed(hosts + more, plan.family).await?;
        let last = testbed.host(testbed.hosts().len() - 1);
        let leases = Leases::build(&session.scratch, last, plan).await?;
        Ok(Self { leases, testbed, hosts: hosts as usize })
    }

    pub(crate) fn hosts(&self) -> &[Host] {
        &self.testbed.hosts()[..self.hosts]
    }

    pub(crate) fn host(&self, index: usize) -> &Host {
        &self.hosts()[index]
    }
}

/// Hosts on an underlay that has all peers on the link, on a kernel that has nothing else to do.
pub(crate) async fn testbed(hosts: u32, family: Family) -> Result<Testbed> {
    timeout(PATIENCE, cleared()).await.with_context(|| {
        format!("namespaces that are gone were still there after {PATIENCE:?}")
    })??;
    Ok(Testbed::builder(hosts).underlay(underlay(family)).build().await?)
}

/// Waits until the kernel has cleared away all namespaces that are gone.
///
/// It does that some time later, for all that went meanwhile, and holds the lock which every change of routes needs: for
/// hundreds of milliseconds after a host with 10,000 peers. A cable goes with the namespace of one of its ends.
async fn cleared() -> Result<()> {
    let near = Namespace::create()?;
    let mut connection = Connection::open(&near)?;
    // The first one may be cleared together with those before, and when its cable goes they are not done. When that of the
    // second one goes they are.
    for _ in 0..2 {
        let far = Some(Namespace::create()?);
        let kind = LinkSpecKind::Veth { peer: "far".into(), peer_namespace: far };
        ensure_link(&mut connection, &LinkSpec::new(CABLE, kind)).await?;
        while link_by_name(&mut connection, CABLE).await?.is_some() {
            sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

const CABLE: &str = "near";

/// With many peers on a loaded machine it takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
