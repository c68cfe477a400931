//! Hosts, and a store that their nodes share.

use anyhow::Result;
use flannel_testbed::{Builder, Host, Testbed};

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
        let testbed = testbed(hosts + more, plan.family).build().await?;
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

/// Hosts on an underlay that has all peers on the link.
pub(crate) fn testbed(hosts: u32, family: Family) -> Builder {
    Testbed::builder(hosts).underlay(underlay(family))
}
