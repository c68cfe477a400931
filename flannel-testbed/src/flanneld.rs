use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{Blocks, Host, Process, ProcessError, TestbedError, etcd::program};

/// The real flanneld on a host. It is killed when the value is dropped.
///
/// `./ci.sh flanneld` builds it, in the version of `flannel-testbed/flanneld/go.mod`.
#[derive(Debug)]
pub struct Flanneld {
    process: Process,
    subnet_file: PathBuf,
}

impl Flanneld {
    /// The version that tests compare with.
    pub const VERSION: &str = "v0.28.10";

    /// The program, from the target folder that this process was built in.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Flanneld`] when it has not been built.
    pub fn path() -> Result<PathBuf, TestbedError> {
        let program = Path::new("flanneld").join(Self::VERSION);
        let own = env::current_exe().unwrap_or_default();
        let found = own.ancestors().map(|folder| folder.join(&program)).find(|path| path.is_file());
        found.ok_or(TestbedError::Flanneld)
    }

    /// A command that runs it over the etcd at `etcd`, with `eth0` as its uplink and its file at `subnet_file`. More options and
    /// variables can be added.
    ///
    /// # Errors
    ///
    /// As [`path`](Self::path).
    pub fn command(etcd: &str, subnet_file: &Path) -> Result<Command, TestbedError> {
        let mut command = program(Self::path()?);
        command.arg(format!("-etcd-endpoints={etcd}")).arg("-iface=eth0");
        command.arg(format!("-subnet-file={}", subnet_file.display()));
        Ok(command)
    }

    /// Runs `command`, made by [`command`](Self::command) for the same `subnet_file`, on `host`, and waits until it has its subnet.
    ///
    /// # Errors
    ///
    /// [`ProcessError`] with what it printed when it is not there within a minute.
    pub async fn start(
        host: &Host,
        command: Command,
        subnet_file: &Path,
    ) -> Result<Self, ProcessError> {
        let mut process = host.spawn(command)?;
        let ready = |line: &str| line.contains("Wrote subnet file to");
        process.line(Duration::from_secs(60), ready).await?;
        Ok(Self { process, subnet_file: subnet_file.to_owned() })
    }

    /// The process, to terminate, kill or wait for.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The subnet that it has, according to its file.
    ///
    /// # Panics
    ///
    /// When the file is not there or has no subnet.
    pub fn subnet(&self) -> Blocks {
        subnet(&self.subnet_file)
    }
}

/// The blocks that a `subnet.env` names as its host's.
///
/// # Panics
///
/// When the file cannot be read or names none.
pub fn subnet(subnet_file: &Path) -> Blocks {
    let text = fs::read_to_string(subnet_file).expect("a subnet.env");
    let blocks = text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.ends_with("_SUBNET").then_some(value)
    });
    blocks.collect::<Vec<_>>().join(",").parse().expect("blocks of addresses")
}
