//! The programs that are compared, and one of them running as a node.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use flannel_core::SubnetEnv;
use flannel_testbed::{Blocks, Host, Process};
use tokio::time::{Instant, timeout};

use crate::{args::Common, arrivals::Arrivals, leases::Leases};

/// A program that takes flanneld's flags.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Our node first, then the others.
pub(crate) fn programs(common: &Common) -> Result<Vec<Program>> {
    let own = match &common.node {
        Some(path) => path.clone(),
        None => beside_us()?,
    };
    let others = common.peer.iter().cloned();
    let all = [(NODE.into(), own)].into_iter().chain(others);
    let all: Vec<_> = all.map(|(name, path)| Program { name, path }).collect();
    for Program { name, path } in &all {
        ensure!(path.is_file(), "there is no program {} for {name}", path.display());
    }
    Ok(all)
}

fn beside_us() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find this program's file")?;
    let path = own.with_file_name(NODE);
    if !path.is_file() {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        bail!(
            "there is no {}: build it with `cargo build{release} -p {NODE}`, or name one with --node PATH",
            path.display()
        );
    }
    Ok(path)
}

/// A node on a host.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) process: Process,
    /// When it was started.
    pub(crate) started: Instant,
    env: PathBuf,
    arrivals: Arrivals,
}

impl Node {
    /// Starts `program` on `host`, with its own files in a folder beside the store.
    pub(crate) fn start(program: &Program, host: &Host, leases: &Leases) -> Result<Self> {
        let mut options = leases.node_args();
        if program.name == NODE {
            options.extend(["--node-id".into(), host.name().into()]);
        }
        Self::start_with(program, host, leases.folder(), options)
    }

    /// Starts `program` with these options, and with its own files in a folder below `folder`.
    pub(crate) fn start_with(
        program: &Program,
        host: &Host,
        folder: &Path,
        options: Vec<OsString>,
    ) -> Result<Self> {
        let folder = folder.join(host.name());
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        #[expect(clippy::disallowed_methods, reason = "the program is what is measured")]
        let mut command = Command::new(&program.path);
        let inherited = env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| name.to_string_lossy().starts_with("FLANNELD_")) {
            command.env_remove(name);
        }
        let env = folder.join("subnet.env");
        command.args(options).args(["--iface", "eth0"]);
        // Others may not know this, and go by their address as flannel does. Whoever keeps something keeps it here.
        command.env("FLANNELD_STATE_DIR", &folder).env("NODE_NAME", host.name());
        command.arg("--subnet-file").arg(&env);
        let arrivals = Arrivals::watch(&folder)?;
        let started = Instant::now();
        let process = host.spawn(command)?;
        Ok(Self { process, started, env, arrivals })
    }

    /// Waits until it has written its subnet file, and returns what that says and when it was there.
    pub(crate) async fn ready(&mut self, patience: Duration) -> Result<(SubnetEnv, Instant)> {
        let name = self.env.file_name().context("the subnet file has a name")?;
        let arrived = tokio::select! {
            arrived = timeout(patience, self.arrivals.file(name)) => arrived,
            ended = self.process.wait() => {
                let output = self.process.output().join("\n  ");
                bail!("the node ended with {} before it was ready:\n  {output}", ended?);
            }
        };
        let at = Instant::now();
        match arrived {
            Ok(arrived) => arrived?,
            Err(_) => {
                let output = self.process.output().join("\n  ");
                bail!("the node was not ready after {patience:?}:\n  {output}");
            }
        }
        let text = fs::read_to_string(&self.env);
        let text = text.with_context(|| format!("cannot read {}", self.env.display()))?;
        Ok((SubnetEnv::parse(&text), at))
    }

    /// Lets the next node in its place not know which backend this one had: one that knows keeps that for as long as peers need it.
    pub(crate) fn forget_backend(&self) -> Result<()> {
        let record = self.env.with_extension("backend.json");
        match fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", record.display()))
            }
            _ => Ok(()),
        }
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.process.pid().context("the node has ended")
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait().await?;
        Ok(())
    }
}

/// The blocks that a node has for its pods.
pub(crate) fn subnet(env: &SubnetEnv) -> Result<Blocks> {
    Blocks::new(env.subnet, env.ipv6_subnet).context("the subnet file names no subnet")
}

/// The name of our program, and of its row.
pub(crate) const NODE: &str = "flannel-node";
