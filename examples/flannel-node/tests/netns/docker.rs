//! What Docker is told where the subnet is another node's.
#![expect(clippy::disallowed_methods, reason = "these tests are about the program itself")]

use std::{fs, process::Command};

use flannel_testbed::{Blocks, Testbed};

use super::support::program;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_subnet_that_is_routed_to_another_host_is_no_subnet_for_docker() {
    let testbed = Testbed::new(2).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [env, made] = ["subnet.env", "docker.env"].map(|name| folder.path().join(name));
    fs::write(&env, "FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n")
        .unwrap();
    let run = async || {
        let mut command = Command::new(program());
        command.arg("docker-opts").arg("-f").arg(&env).arg("-d").arg(&made);
        let mut process = testbed.host(0).spawn(command).unwrap();
        (process.wait().await.unwrap().code(), process.output().join("\n"))
    };
    assert_eq!(run().await, (Some(0), String::new()));
    fs::remove_file(&made).unwrap();
    let block = |text: &str| text.parse::<Blocks>().unwrap();
    // A route beside it does not matter.
    testbed.host(0).add_route(block("10.1.75.0/24"), testbed.host(1)).await.unwrap();
    assert_eq!(run().await.0, Some(0));
    testbed.host(0).add_route(block("10.1.74.0/24"), testbed.host(1)).await.unwrap();
    let (code, said) = run().await;
    assert_eq!(code, Some(1));
    assert!(said.contains("Your routing table already contains the subnet: "), "{said}");
    assert!(said.contains("10.1.74.0/24"), "{said}");
    assert!(fs::read_to_string(&made).unwrap().contains("--bip=10.1.74.1/24"), "written before");
}
