//! The network's backend is another, in a cluster that runs.

use super::{
    migrating::{Trouble, loses_nothing},
    support::{HOST_GW, VXLAN},
};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nodes_move_between_vxlan_and_host_gw_without_a_lost_packet() {
    loses_nothing(&[VXLAN, HOST_GW, VXLAN], Trouble::Nothing).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_that_is_killed_in_each_phase_of_a_migration_loses_no_packet() {
    loses_nothing(&[VXLAN, HOST_GW, VXLAN], Trouble::Killed).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_that_lags_in_a_migration_is_waited_for_and_named() {
    loses_nothing(&[VXLAN, HOST_GW, VXLAN], Trouble::Lags).await;
}
