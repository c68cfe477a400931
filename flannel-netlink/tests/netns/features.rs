use std::time::Duration;

use flannel_netlink::{
    Features, LinkSpec, LinkSpecKind, Monitor, Topic, delete_link, ensure_link, state::Vxlan,
};
use tokio::time::timeout;

use crate::support::Host;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_feature_is_switched_and_the_kernel_tells_of_it() {
    let mut host = Host::new().await;
    let spec = LinkSpec::new("flannel.1", LinkSpecKind::Vxlan(Vxlan::new(1)));
    let (device, _) = ensure_link(&mut host.connection, &spec).await.unwrap();
    let mut features = Features::open(&host.namespace).unwrap();
    let checksum = Features::TX_CHECKSUM;
    assert_eq!(features.get(device.index, checksum).await, Ok(Some(true)), "the kernel's default");
    assert_eq!(features.get(device.index, "no-such-feature").await, Ok(None));

    let mut monitor = Monitor::open_for(&host.namespace, &[Topic::Links]).unwrap();
    features.set(device.index, checksum, false).await.unwrap();
    assert_eq!(features.get(device.index, checksum).await, Ok(Some(false)));
    let told = timeout(Duration::from_secs(5), monitor.next()).await;
    told.expect("a notification comes").unwrap();
    features.set(device.index, checksum, true).await.unwrap();
    assert_eq!(features.get(device.index, checksum).await, Ok(Some(true)));

    delete_link(&mut host.connection, device.index).await.unwrap();
    let error = features.set(device.index, checksum, false).await.unwrap_err();
    assert!(error.not_found(), "{error}");
    assert!(features.get(device.index, checksum).await.unwrap_err().not_found());
}
