//! Everything that nodes have put into a namespace, without a node.

use flannel_core::BackendError;
use flannel_netlink::{
    Namespace, Table,
    state::Route,
    table::{Mark, TableReport},
};
use ipnetwork::IpNetwork;

use crate::{PROTOCOLS, guard::guard, nexthop_ids, remove_leftovers};

/// What [`remove_all`] has removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Removed {
    /// The names of devices. What was on them went with them.
    pub devices: Vec<String>,
    /// How many routes and nexthop objects.
    pub objects: usize,
}

/// Removes all that nodes of `networks` have put into `namespace`: routes and nexthop objects with our mark in the main table,
/// devices, and filters. Nothing else is touched. For when no node runs there.
///
/// With `guarded`, unreachable routes to the networks are left in their place, without our mark, so that nothing that pods send to each
/// other follows a default route.
///
/// # Errors
///
/// [`BackendError::Kernel`] naming the first thing that could not be removed; all others are removed all the same.
///
/// # Cancel safety
///
/// Dropping it leaves a part of them; another call removes the rest.
pub async fn remove_all(
    namespace: &Namespace,
    networks: &[IpNetwork],
    guarded: bool,
) -> Result<Removed, BackendError> {
    let refused =
        |operation: &str, source| BackendError::Kernel { operation: operation.into(), source };
    let mut reports = Vec::new();
    let number = Route::MAIN;
    // Before routes go by which they are known.
    let ids = nexthop_ids(namespace, networks, number).await?;
    for protocol in PROTOCOLS {
        let mut mark = Mark::new(protocol, networks.to_vec());
        mark.nexthops = ids.clone();
        let report = async {
            let mut table = Table::open(namespace, mark).await?;
            let guards = networks.iter().map(|network| guard(*network, Route::BOOT, number).into());
            table.want_only(guards.filter(|_| guarded).collect::<Vec<_>>());
            table.sync().await
        };
        reports.push(report.await.map_err(|error| refused("list routes", error.into())));
    }
    // Devices go also if routes do not.
    let devices = remove_leftovers(namespace, networks, &[]).await;
    let (mut objects, mut failed) = (0, None);
    for report in reports {
        let TableReport { removed, failures, .. } = report?;
        objects += removed;
        failed = failed.or_else(|| failures.into_iter().next());
    }
    match failed {
        None => Ok(Removed { devices: devices?, objects }),
        Some(failure) => Err(refused(&format!("delete {}", failure.object), failure.source.into())),
    }
}
