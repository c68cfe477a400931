//! A node and a container, and the program run between them as a runtime runs it.

use std::{
    env,
    ffi::OsStr,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
};

use flannel_netlink::Namespace;
use serde_json::Value;
use tempfile::TempDir;

/// A node. It is a namespace without a name, as containers are.
pub(crate) struct Node {
    pub(crate) host: Namespace,
    pub(crate) folder: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { host: Namespace::create().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// Runs the program as `plugin` with this verb for this container.
    pub(crate) fn run(&self, plugin: &str, verb: &str, pod: &Pod, config: &Value) -> Reply {
        Reply::of(self.start(&[plugin], verb, pod, config, &[]))
    }

    /// Starts a command whose last word is a plugin: one of ours by its name, or any by its path, beside which others are found.
    /// `variables` are added to its environment.
    pub(crate) fn start(
        &self,
        words: &[&str],
        verb: &str,
        pod: &Pod,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Child {
        let (plugin, before) = words.split_last().unwrap();
        let path = match plugin.contains('/') {
            true => PathBuf::from(plugin),
            false => self.program(plugin),
        };
        let words: Vec<&OsStr> = before.iter().map(OsStr::new).chain([path.as_os_str()]).collect();
        let child = self.host.run(|| {
            #[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
            let mut command = std::process::Command::new(words[0]);
            command.args(&words[1..]);
            command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", path.parent().unwrap());
            // Where iptables is.
            command.env("PATH", env::var_os("PATH").unwrap_or_default());
            command.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
            if let Some(netns) = &pod.netns {
                command.env("CNI_NETNS", netns);
            }
            command.envs(variables.iter().copied());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        });
        let mut child = child.unwrap();
        // VERSION is answered without reading it.
        let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
        child
    }

    /// The program under the plugin's name.
    pub(crate) fn program(&self, plugin: &str) -> PathBuf {
        let bin = self.folder.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let program = bin.join(plugin);
        if !program.exists() {
            std::os::unix::fs::symlink(own_program(), &program).unwrap();
        }
        program
    }
}

/// A container: its namespace has a path while this value lives.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) namespace: Namespace,
    pub(crate) netns: Option<String>,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        let namespace = Namespace::create().unwrap();
        let netns = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd());
        Self { id: id.to_owned(), namespace, netns: Some(netns) }
    }

    pub(crate) fn netns(&self) -> &str {
        self.netns.as_deref().unwrap()
    }
}

/// The program that is tested: in a virtual machine it is beside the test.
fn own_program() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_flannel-cni"));
    match built.exists() {
        true => built,
        false => env::current_exe().unwrap().with_file_name("flannel-cni"),
    }
}

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) fine: bool,
    pub(crate) json: Value,
    pub(crate) errors: String,
}

impl Reply {
    pub(crate) fn of(child: Child) -> Self {
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        assert_eq!(status.signal(), None, "{}", String::from_utf8_lossy(&stderr));
        Self {
            fine: status.success(),
            json: serde_json::from_slice(&stdout).unwrap_or(Value::Null),
            errors: String::from_utf8(stderr).unwrap(),
        }
    }

    /// The result of a call that has to succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.fine, "{:#} {}", self.json, self.errors);
        self.json
    }

    /// Code and message of a call that has to fail.
    #[track_caller]
    pub(crate) fn refused(self) -> (u64, String) {
        assert!(!self.fine, "it succeeded: {:#}", self.json);
        (self.json["code"].as_u64().unwrap(), self.json["msg"].as_str().unwrap().to_owned())
    }
}

/// What iproute2 says inside of a namespace.
pub(crate) fn ip(namespace: &Namespace, arguments: &str) -> Value {
    let words: Vec<&str> = ["-j"].into_iter().chain(arguments.split_whitespace()).collect();
    let text = program(namespace, Path::new("ip"), &words);
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Runs another program inside of a namespace; it has to succeed.
#[track_caller]
pub(crate) fn program(namespace: &Namespace, program: &Path, arguments: &[&str]) -> String {
    let output = namespace.run(|| {
        #[expect(clippy::disallowed_methods, reason = "a second opinion on the kernel's state")]
        std::process::Command::new(program).args(arguments).output().unwrap()
    });
    let output = output.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
