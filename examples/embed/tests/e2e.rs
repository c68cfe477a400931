//! The example as it is, on two hosts.
#![expect(clippy::disallowed_methods, reason = "this test is about the program itself")]

use std::{process::Command, time::Duration};

use flannel_testbed::Testbed;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn two_programs_make_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let testbed = Testbed::new(2).await.unwrap();
    let mut programs = Vec::new();
    for host in testbed.hosts() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_embed"));
        command.arg(folder.path()).args([host.name(), "eth0"]);
        programs.push(host.spawn(command).unwrap());
    }
    for program in &mut programs {
        let sees_the_other = |line: &str| line.ends_with("and 1 peers");
        program.line(Duration::from_secs(20), sees_the_other).await.unwrap();
    }
}

#[test]
fn the_example_is_short() {
    let lines = include_str!("../src/main.rs").lines().count();
    assert!(lines < 60, "{lines} lines");
}
