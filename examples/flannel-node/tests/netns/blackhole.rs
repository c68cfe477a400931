//! Nodes that drop packets to addresses of their own subnet that no pod has.

use super::{
    dropping,
    support::{HOST_GW, VXLAN},
};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_no_pod_has_is_dropped_if_asked_and_what_pods_have_is_not() {
    for network in [HOST_GW, VXLAN] {
        dropping::comes_if_asked_and_goes(network).await;
    }
}
