//! Plugins of ours under strace, which ends them where it is told to.

use std::{
    collections::BTreeMap,
    process::{ExitStatus, Output},
};

use serde_json::Value;

use crate::support::{Node, Pod};

/// An `ADD` of ours.
pub(crate) struct Traced<'a> {
    pub(crate) node: &'a Node,
    pub(crate) plugin: &'a str,
    pub(crate) pod: &'a Pod,
    pub(crate) config: &'a Value,
}

impl Traced<'_> {
    /// The system calls that anybody else can notice, and how often the busiest thread makes each: strace counts by thread.
    pub(crate) fn system_calls(&self) -> BTreeMap<String, u32> {
        let log = self.node.folder.path().join("calls");
        let output = self.run(&["-o", log.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let text = std::fs::read_to_string(log).unwrap();
        let mut calls: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for line in text.lines() {
            let Some((thread, call)) = line.split_once(' ') else { continue };
            let Some((name, _)) = call.trim().split_once('(') else { continue };
            let plain = name.chars().all(|it| it.is_ascii_alphanumeric() || it == '_');
            if plain && !name.is_empty() && !UNSEEN.contains(&name) {
                *calls.entry((name, thread)).or_default() += 1;
            }
        }
        let mut busiest = BTreeMap::new();
        for ((name, _), count) in calls {
            let most = busiest.entry(name.to_owned()).or_insert(0);
            *most = count.max(*most);
        }
        busiest
    }

    /// Kills it at the `nth` call of this name.
    pub(crate) fn stop_at(&self, name: &str, nth: u32) -> ExitStatus {
        let inject = format!("inject={name}:signal=KILL:when={nth}");
        self.run(&["-o", "/dev/null", "-e", &format!("trace={name}"), "-e", &inject]).status
    }

    fn run(&self, options: &[&str]) -> Output {
        let words = [&["strace", "-f", "-qq"], options, &[self.plugin]].concat();
        let child = self.node.start(&words, "ADD", self.pod, self.config, &[]);
        child.wait_with_output().unwrap()
    }
}

/// What changes nothing outside of the process: to be killed there is to be killed before the next one.
const UNSEEN: [&str; 14] = [
    "access",
    "arch_prctl",
    "brk",
    "execve",
    "futex",
    "getrandom",
    "mmap",
    "mprotect",
    "munmap",
    "poll",
    "prlimit64",
    "rseq",
    "rt_sigaction",
    "sigaltstack",
];
