//! The plugins that are compared, and how they are called.

use std::{
    env, fs,
    io::Write as _,
    ops::Range,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use flannel_netlink::Namespace;
use flannel_testbed::cni_plugins;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{parse, pods::Pod, write};
use crate::{args::Cni, session::Session};

/// One side's programs.
#[derive(Debug)]
pub(super) struct Plugins {
    pub(super) name: &'static str,
    pub(super) folder: PathBuf,
    /// What keeps the folder, if it is ours.
    _made: Option<TempDir>,
}

/// Ours first, then those of containernetworking.
pub(super) fn sides(options: &Cni) -> Result<Vec<Plugins>> {
    let own = env::current_exe().context("cannot find this program's file")?;
    let program = options.plugin.clone().unwrap_or_else(|| own.with_file_name("flannel-cni"));
    let theirs = options.theirs.clone().or_else(cni_plugins);
    let theirs = theirs.context("there are no plugins of containernetworking: run ./ci.sh cni")?;
    let made = tempfile::tempdir().context("cannot make a folder")?;
    let folder = made.path().join("bin");
    fs::create_dir(&folder).context("cannot make a folder")?;
    for plugin in PLUGINS {
        for file in [program.as_path(), &theirs.join(plugin)] {
            ensure!(file.is_file(), "there is no program {}", file.display());
        }
        let program = fs::canonicalize(&program).context("cannot find flannel-cni")?;
        symlink(program, folder.join(plugin)).context("cannot make a link")?;
    }
    let ours = Plugins { name: OURS, folder, _made: Some(made) };
    Ok(vec![ours, Plugins { name: THEIRS, folder: theirs, _made: None }])
}

/// A node whose pods one side connects.
#[derive(Debug)]
pub(super) struct Site<'a> {
    session: &'a Session,
    plugins: &'a Plugins,
    host: Namespace,
    files: TempDir,
}

impl<'a> Site<'a> {
    /// A node of a /16, with `taken` addresses in use.
    pub(super) fn new(session: &'a Session, plugins: &'a Plugins, taken: u32) -> Result<Self> {
        ensure!(!session.ended(), "it was ended");
        let host = Namespace::create().context("cannot make a node's namespace")?;
        let files = tempfile::tempdir_in(&session.scratch).context("cannot make a folder")?;
        let env = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.1.0.1/16\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        write(&files.path().join("subnet.env"), env)?;
        let addresses = files.path().join("networks/cbr0");
        fs::create_dir_all(&addresses).context("cannot make a folder")?;
        for number in 2..2 + taken {
            let name = format!("10.1.{}.{}", number / 256, number % 256);
            write(&addresses.join(name), &format!("taken-{number}\r\neth0"))?;
        }
        Ok(Self { session, plugins, host, files })
    }

    pub(super) fn name(&self) -> &'static str {
        self.plugins.name
    }

    pub(super) fn files(&self) -> &Path {
        self.files.path()
    }

    /// As flannel's manifest has it.
    pub(super) fn flannel(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": self.files().join("subnet.env"), "dataDir": self.files().join("flannel"),
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
            "ipam": {"dataDir": self.files().join("networks")},
        })
    }

    pub(super) fn portmap(&self, ports: Range<u16>, result: &Value) -> Value {
        let port = |number| json!({"hostPort": number, "containerPort": 80, "protocol": "tcp"});
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "prevResult": result,
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": ports.map(port).collect::<Vec<_>>()},
        })
    }

    /// A whole call: from the start of the program until it has ended and what it printed was read.
    pub(super) fn call(
        &self,
        plugin: &str,
        verb: &str,
        pod: &Pod,
        config: &Value,
    ) -> Result<(Value, Duration)> {
        ensure!(!self.session.ended(), "it was ended");
        let config = config.to_string();
        let (output, took) = self.host.run(|| {
            let started = Instant::now();
            let mut child = self.command(plugin, verb, pod).spawn()?;
            send(&mut child, &config);
            child.wait_with_output().map(|output| (output, started.elapsed()))
        })??;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{plugin} {verb}: {}: {printed}", output.status);
        let result = if verb == "ADD" { parse(&output.stdout)? } else { Value::Null };
        Ok((result, took))
    }

    /// What it takes to run any program.
    pub(super) fn floor(&self) -> Result<Duration> {
        self.host
            .run(|| {
                let started = Instant::now();
                #[expect(clippy::disallowed_methods, reason = "the reference for programs")]
                let mut command = Command::new("/bin/true");
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                command.spawn()?.wait_with_output().map(|_| started.elapsed())
            })?
            .context("cannot run /bin/true")
    }

    /// Connects `count` pods, as many at once as there are processors, twice over.
    pub(super) fn together(&self, count: u32, ports: u16) -> Result<Duration> {
        let pods: Vec<Pod> =
            (0..count).map(|number| Pod::new(format!("p{number}"))).collect::<Result<_>>()?;
        let workers = 2 * thread::available_parallelism().map_or(2, usize::from);
        let started = Instant::now();
        let work = |worker: usize| {
            for (number, pod) in pods.iter().enumerate().skip(worker).step_by(workers) {
                let (result, _) = self.call("flannel", "ADD", pod, &self.flannel())?;
                let first = 8000 + 2 * u16::try_from(number)?;
                let config = self.portmap(first..first + ports, &result);
                self.call("portmap", "ADD", pod, &config)?;
            }
            anyhow::Ok(())
        };
        let work = &work;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|it| scope.spawn(move || work(it))).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        Ok(started.elapsed())
    }

    pub(super) fn command(&self, plugin: &str, verb: &str, pod: &Pod) -> Command {
        #[expect(clippy::disallowed_methods, reason = "the program is what is measured")]
        let mut command = Command::new(self.plugins.folder.join(plugin));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", pod.netns()).env("CNI_PATH", &self.plugins.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    pub(super) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.host.run(f)?)
    }
}

/// Gives a plugin its configuration. One that has ended already says why by its exit.
pub(super) fn send(child: &mut Child, config: &str) {
    if let Some(mut input) = child.stdin.take() {
        drop(input.write_all(config.as_bytes()));
    }
}

pub(super) const OURS: &str = "flannel-cni";
pub(super) const THEIRS: &str = "containernetworking";
const PLUGINS: [&str; 4] = ["bridge", "flannel", "host-local", "portmap"];
