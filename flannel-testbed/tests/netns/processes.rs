use std::{fs, process::Command};

use flannel_testbed::{ProcessError, Testbed};

use super::support::{MS, SECOND, until};

fn shell(script: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a child process is what is tested")]
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_program_runs_in_the_namespace_of_its_host() {
    let testbed = Testbed::new(2).await.unwrap();
    let host = testbed.host(1);
    let mut program =
        host.spawn(shell("readlink /proc/self/ns/net; echo trouble >&2; exit 3")).unwrap();
    let expected = format!("net:[{}]", host.namespace().inode());
    program.line(5 * SECOND, |line| line == expected).await.unwrap();
    program.line(5 * SECOND, |line| line == "trouble").await.unwrap();
    assert_eq!(program.wait().await.unwrap().code(), Some(3));
    assert_eq!(program.output().len(), 2);
    assert_eq!(program.pid(), None);
    program.terminate().unwrap();
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_program_is_asked_to_end_or_killed() {
    let testbed = Testbed::new(1).await.unwrap();
    let mut program = testbed
        .host(0)
        .spawn(shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do :; done"))
        .unwrap();
    program.line(5 * SECOND, |line| line == "ready").await.unwrap();
    let resident = program.resident_memory().unwrap();
    assert!((100 << 10..100 << 20).contains(&resident), "{resident}");
    program.terminate().unwrap();
    assert!(program.wait().await.unwrap().success());
    assert_eq!(program.output(), ["ready", "bye"]);
    assert!(matches!(program.resident_memory(), Err(ProcessError::Memory { .. })));

    let mut program = testbed.host(0).spawn(shell("trap '' TERM; exec sleep 1000")).unwrap();
    program.kill().unwrap();
    assert!(!program.wait().await.unwrap().success());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_dropped_program_is_killed() {
    let testbed = Testbed::new(1).await.unwrap();
    let program = testbed.host(0).spawn(shell("exec sleep 1000")).unwrap();
    let proc = format!("/proc/{}/status", program.pid().unwrap());
    assert!(fs::exists(&proc).unwrap());
    drop(program);
    until("it is gone", async || !fs::exists(&proc).unwrap()).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_program_can_be_held() {
    let testbed = Testbed::new(1).await.unwrap();
    let mut program =
        testbed.host(0).spawn(shell("while :; do echo tick; sleep 0.01; done")).unwrap();
    program.line(5 * SECOND, |line| line == "tick").await.unwrap();
    program.pause().unwrap();
    let status = format!("/proc/{}/status", program.pid().unwrap());
    until("it is stopped", async || fs::read_to_string(&status).unwrap().contains("T (stopped)"))
        .await;
    program.resume().unwrap();
    let before = program.output().len();
    until("it ticks again", async || program.output().len() > before + 2).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_was_not_printed_is_an_error_with_what_was() {
    let testbed = Testbed::new(1).await.unwrap();
    let mut program = testbed.host(0).spawn(shell("echo one; echo two")).unwrap();
    let error = program.line(5 * SECOND, |line| line == "three").await.unwrap_err();
    let text = "sh on host1 did not print the line that was waited for, but:\none\ntwo";
    assert_eq!(error.to_string(), text);
    let mut silent = testbed.host(0).spawn(shell("exec sleep 1000")).unwrap();
    assert!(silent.line(50 * MS, |_| true).await.is_err());

    #[expect(clippy::disallowed_methods, reason = "a child process is what is tested")]
    let missing = Command::new("/nonexistent/program");
    let error = testbed.host(0).spawn(missing).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /nonexistent/program on host1");
}
