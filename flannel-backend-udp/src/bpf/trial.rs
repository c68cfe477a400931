//! Whether the kernel runs the programs in their places.

use std::os::fd::AsRawFd;

use flannel_backend::filter;
use flannel_netlink::{Connection, LinkChange, Namespace, alter_link, state};
use ipnetwork::IpNetwork;
use tracing::debug;

use super::{detour::LOOPBACK, error::BpfError, programs::Programs};

/// Has the kernel take the programs in both places, in a namespace that goes right after: a kernel may be without lightweight
/// tunnels or without filters that are programs.
pub(super) async fn try_places(programs: &Programs) -> Result<(), BpfError> {
    let failed = |source| BpfError::Open { source };
    let namespace = match Namespace::create() {
        Ok(namespace) => namespace,
        // The places themselves will tell.
        Err(error) => {
            debug!(%error, "BPF programs were not tried");
            return Ok(());
        }
    };
    let mut connection = Connection::open(&namespace).map_err(failed)?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    alter_link(&mut connection, LOOPBACK, &up)
        .await
        .map_err(|source| BpfError::filter("set up a device to try", LOOPBACK, source))?;
    // For documentation, RFC 5737.
    let network = IpNetwork::V4("192.0.2.0/24".parse().expect("a network"));
    let route = state::Route::new(network, 0).through(programs.sending(), LOOPBACK);
    connection.apply_one(route.replace()).await.map_err(|source| BpfError::Route { source })?;
    let filter = filter::replace(LOOPBACK, 1, programs.receiving().0.as_raw_fd(), "trial");
    for (operation, request) in
        [("create clsact", filter::create_clsact(LOOPBACK)), ("put the BPF filter", filter)]
    {
        let done = connection.apply_one(request).await;
        done.map_err(|source| BpfError::filter(operation, LOOPBACK, source))?;
    }
    Ok(())
}
