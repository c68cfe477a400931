//! The real flanneld on a host, which `./ci.sh flanneld` builds.

use flannel_testbed::{Etcd, Flanneld, Testbed};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN and the real flanneld: run ./ci.sh flanneld"]
async fn the_real_flanneld_takes_a_subnet_of_the_network_in_etcd() {
    let testbed = Testbed::new(1).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host = testbed.host(0);
    let etcd = Etcd::start(host, &folder.path().join("etcd")).await.unwrap();
    let network = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
    etcd.ctl(&["put", "/coreos.com/network/config", network]).await.unwrap();

    let file = folder.path().join("subnet.env");
    let command = Flanneld::command(etcd.url(), &file).unwrap();
    let mut flanneld = Flanneld::start(host, command, &file).await.unwrap();

    let key = flanneld.subnet().ipv4().unwrap();
    let key = format!("/coreos.com/network/subnets/{}-{}", key.network(), key.prefix());
    let lease = etcd.ctl(&["get", "--print-value-only", &key]).await.unwrap();
    let expected =
        format!(r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"host-gw"}}"#, host.ip());
    assert_eq!(lease, expected);
    flanneld.process().terminate().unwrap();
    assert!(flanneld.process().wait().await.unwrap().success());
}
