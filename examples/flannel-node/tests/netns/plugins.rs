//! What the CNI plugin says of a node that cannot serve pods.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{process::Command, time::Duration};

use flannel_cni::{
    Call, Plugin, execute,
    protocol::{Config, Environment, Error, Verb},
};
use flannel_testbed::soon;
use serde_json::json;
use tokio::time::sleep;

use crate::support::{Cluster, HOST_GW, program};

async fn ask(cluster: &Cluster, verb: Verb) -> Result<(), Error> {
    let folder = cluster.folder.path();
    let config = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel", "subnetFileWait": 0,
        "subnetFile": cluster.subnet_file(0), "dataDir": folder.join("flannel"),
        "ipam": {"dataDir": folder.join("networks")},
    });
    let environment = Environment {
        verb,
        container_id: "c1".into(),
        netns: Some("/run/netns/none".into()),
        interface: "eth0".into(),
        ..Environment::default()
    };
    let call = Call::new(environment, Config::parse(config.to_string().as_bytes())?)?;
    execute(Plugin::Flannel, &call).await.map(drop)
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_says_to_runtimes_why_it_is_not_ready() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let error = ask(&cluster, Verb::Status).await.unwrap_err();
    assert_eq!(error.code.number(), 50);
    assert!(error.message.starts_with("failed to load flannel 'subnet.env'"), "{error}");
    let mut command = Command::new(program());
    command.args(["-iface=eth9", "-network", HOST_GW, &format!("-store={}", cluster.store())]);
    command.arg("-subnet-file").arg(cluster.subnet_file(0));
    command.arg("-state-dir").arg(cluster.state_folder(0));
    let mut process = cluster.host(0).spawn(command).unwrap();
    // Once it has looked.
    let told = async {
        loop {
            let error = ask(&cluster, Verb::Status).await.unwrap_err();
            if error.details.contains("eth9") {
                return error;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let error = soon(told).await;
    assert_eq!(error.code.number(), 50);
    assert!(error.details.starts_with("flannel-node is not ready: start: cannot "), "{error}");
    let pod = ask(&cluster, Verb::Add).await.unwrap_err();
    assert_eq!((pod.code.number(), pod.details), (11, error.details));
    cluster
        .shell(0, "ip link set eth0 down && ip link set eth0 name eth9 && ip link set eth9 up")
        .await;
    process.line(Duration::from_secs(20), |line| line.contains(" ready subnet=")).await.unwrap();
    ask(&cluster, Verb::Status).await.unwrap();
    // A daemon that is away, as for an update, is no reason: pods can be connected.
    process.kill().unwrap();
    process.wait().await.unwrap();
    ask(&cluster, Verb::Status).await.unwrap();
    std::fs::remove_file(cluster.subnet_file(0)).unwrap();
    let error = ask(&cluster, Verb::Status).await.unwrap_err();
    assert!(error.details.starts_with("flannel-node does not answer on "), "{error}");
}
