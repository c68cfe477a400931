//! What containernetworking tests its own `portmap` with, beside its `ptp`.

use std::{env, os::unix::fs::symlink, path::Path};

use crate::{
    support::{Node, program},
    theirs::theirs,
};

#[test]
#[ignore = "needs CAP_NET_ADMIN, Go and containernetworking's tests: run ./ci.sh cni"]
fn upstreams_own_tests_pass() {
    let node = Node::new();
    program(&node.host, Path::new("ip"), &["link", "set", "lo", "up"]);
    let plugins = node.program("portmap").parent().unwrap().to_owned();
    node.program("host-local");
    symlink(theirs("ptp"), plugins.join("ptp")).unwrap();
    // It finds plugins where programs are, and builds a server and a client from its module.
    let path = format!("PATH={}:{}", plugins.display(), env::var("PATH").unwrap());
    let module = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cni");
    let test = theirs("portmap.test");
    let words = ["-C", module, &path, test.to_str().unwrap()];
    let focus = ["--ginkgo.no-color", "--ginkgo.focus=portmap integration tests"];
    let output = program(&node.host, Path::new("env"), &[&words[..], &focus].concat());
    let passed = output.lines().find(|line| line.contains(" Passed | 0 Failed"));
    assert!(passed.is_some_and(|line| line.contains("8 Passed")), "{output}");
}
