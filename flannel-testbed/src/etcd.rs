use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use crate::{Host, Process, ProcessError};

/// An etcd on a host, on its usual port. It ends when the value is dropped.
#[derive(Debug)]
pub struct Etcd {
    host: Host,
    url: String,
    process: Process,
}

impl Etcd {
    /// Starts one on `host`, on the data in `folder` if there is any, and waits until it serves.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]: the program is not installed, or has not served within a minute.
    pub async fn start(host: &Host, folder: &Path) -> Result<Self, ProcessError> {
        let url = format!("http://{}", SocketAddr::new(host.ip(), 2379));
        let mut command = program("etcd");
        command.arg("--data-dir").arg(folder);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let mut process = host.spawn(command)?;
        let serves = |line: &str| line.contains("serving insecure client requests");
        process.line(Duration::from_secs(60), serves).await?;
        Ok(Self { host: host.clone(), url, process })
    }

    /// The endpoint for clients.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process, to pause, kill or wait for.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Runs etcdctl against it, from its own host, and returns what that prints.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]; [`ProcessError::Failed`] with what it printed.
    pub async fn ctl(&self, args: &[&str]) -> Result<String, ProcessError> {
        let mut command = program("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(args);
        self.host.run(command).await
    }
}

#[expect(clippy::disallowed_methods, reason = "the real programs are what tests run against")]
pub(crate) fn program(path: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(path)
}
