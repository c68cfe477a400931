//! A node and a container, and the program run between them as a runtime runs it.

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    thread,
};

use flannel_netlink::Namespace;
use serde_json::Value;
use tempfile::TempDir;

/// A node with one container. Both are namespaces without a name; the program finds the container's by a path of its keeper.
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
        self.run_with(plugin, verb, pod, config, &[])
    }

    /// The same with more variables in the environment.
    pub(crate) fn run_with(
        &self,
        plugin: &str,
        verb: &str,
        pod: &Pod,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Reply {
        self.run_program(&self.program(plugin), verb, pod, config, variables)
    }

    /// The same with whichever program, beside which others are found.
    pub(crate) fn run_program(
        &self,
        program: &Path,
        verb: &str,
        pod: &Pod,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Reply {
        let child = self.spawn(program, verb, pod, config, variables);
        Reply::of(child)
    }

    /// Starts it.
    pub(crate) fn spawn(
        &self,
        program: &Path,
        verb: &str,
        pod: &Pod,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Child {
        self.spawn_words(&[program.to_str().unwrap()], verb, pod, config, variables)
    }

    /// A program with arguments, of which the last is the path of the plugin.
    pub(crate) fn spawn_words(
        &self,
        words: &[&str],
        verb: &str,
        pod: &Pod,
        config: &Value,
        variables: &[(&str, &str)],
    ) -> Child {
        let path = Path::new(words.last().unwrap()).parent().unwrap();
        let child = self.host.run(|| {
            #[expect(clippy::disallowed_methods, reason = "the program is what is tested")]
            let mut command = std::process::Command::new(words[0]);
            command.args(&words[1..]);
            command.env_clear().env("CNI_COMMAND", verb).env("CNI_PATH", path);
            // Where iptables is.
            command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
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
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flannel-cni"), &program).unwrap();
        }
        program
    }
}

/// A container: its namespace has a path while this value lives.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) namespace: Namespace,
    pub(crate) netns: Option<String>,
    pub(crate) keeper: Option<(std::sync::mpsc::Sender<()>, thread::JoinHandle<()>)>,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        let namespace = Namespace::create().unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let inside = namespace.clone();
        // A thread in the namespace has a path to it in /proc.
        let keeper = thread::spawn(move || {
            let waited = inside.run(move || {
                let path = std::fs::read_link("/proc/thread-self").unwrap();
                tell.send(format!("/proc/{}/ns/net", path.display())).unwrap();
                let _ = stopped.recv();
            });
            waited.unwrap();
        });
        let netns = told.recv().unwrap();
        Self { id: id.to_owned(), namespace, netns: Some(netns), keeper: Some((stop, keeper)) }
    }

    pub(crate) fn netns(&self) -> &str {
        self.netns.as_deref().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some((stop, keeper)) = self.keeper.take() {
            drop(stop);
            let _ = keeper.join();
        }
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
