use std::{
    fmt, fs, io,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flannel_netlink::Namespace;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::Child,
    runtime::Handle,
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

/// A child process inside a host's network namespace. Made by [`Host::spawn`](crate::Host::spawn).
///
/// Its standard input is empty; what it prints is kept. It is killed when the value is dropped. When this process itself
/// is killed with SIGKILL the child lives on, cut off from the vanished switch.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: Arc<Output>,
    readers: JoinSet<()>,
}

impl Process {
    pub(crate) fn spawn(
        namespace: &Namespace,
        host: &str,
        mut command: Command,
    ) -> Result<Self, ProcessError> {
        let name = format!("{} on {host}", command.get_program().display());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        let runtime = Handle::current();
        // The child is in the namespace of the thread that starts it.
        let started = namespace.run(|| {
            let _inside = runtime.enter();
            command.spawn()
        });
        let mut child = started
            .map_err(io::Error::other)
            .and_then(|spawned| spawned)
            .map_err(|source| ProcessError::Spawn { process: name.clone(), source })?;
        let output = Arc::new(Output::default());
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(Arc::clone(&output).collect(stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(Arc::clone(&output).collect(stderr));
        }
        Ok(Self { child, name, output, readers })
    }

    /// Its process id, until it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The lines it has printed so far on standard output and standard error, in the order in which they were read.
    pub fn output(&self) -> Vec<String> {
        self.output.lines().clone()
    }

    /// Waits until it has printed a line for which `wanted` holds and returns the first such line.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Silent`] with what it printed instead, when `patience` ends or it closes its output first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn line(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String, ProcessError> {
        let found = async {
            let mut seen = 0;
            loop {
                let printed = self.output.printed.notified();
                if let Some(line) = self.output.find(&mut seen, &wanted) {
                    return Some(line);
                }
                tokio::select! {
                    () = printed => {}
                    ended = self.readers.join_next() => { ended?.ok(); }
                }
            }
        };
        match timeout(patience, found).await {
            Ok(Some(line)) => Ok(line),
            _ => Err(ProcessError::Silent { process: self.name.clone(), output: self.output() }),
        }
    }

    /// Asks it to end with SIGTERM.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Signal`]. A process that has ended already is no error.
    pub fn terminate(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGTERM)
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGKILL)
    }

    /// Stops it with SIGSTOP, as a machine does that hangs.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn pause(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn resume(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Wait`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn wait(&mut self) -> Result<ExitStatus, ProcessError> {
        let status = self
            .child
            .wait()
            .await
            .map_err(|source| ProcessError::Wait { process: self.name.clone(), source })?;
        // What it printed last may still be in the pipes. A grandchild may hold them open, so this has an end.
        let rest = async { while self.readers.join_next().await.is_some() {} };
        let _ = timeout(DRAIN, rest).await;
        Ok(status)
    }

    /// Waits for its end and returns all that it printed.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Failed`] when its exit code is not 0; [`ProcessError::Wait`].
    pub(crate) async fn finish(mut self) -> Result<String, ProcessError> {
        let status = self.wait().await?;
        let output = self.output();
        if status.success() {
            return Ok(output.join("\n"));
        }
        Err(ProcessError::Failed { process: self.name.clone(), status, output })
    }

    /// Its resident memory in bytes, from `VmRSS` in `/proc/PID/status`.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Memory`], for example when it has ended.
    pub fn resident_memory(&self) -> Result<u64, ProcessError> {
        let failed = |source| ProcessError::Memory { process: self.name.clone(), source };
        let pid = self.pid().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(failed)?;
        resident_bytes(&status).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))
    }

    fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        // The id is valid: tokio forgets it when it has reaped the process.
        let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) else {
            return Ok(());
        };
        kill(Pid::from_raw(pid), signal).map_err(|errno| ProcessError::Signal {
            process: self.name.clone(),
            signal: signal.as_str(),
            source: errno.into(),
        })
    }
}

/// Why something with a child process did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It ended with another exit code than 0.
    #[error("{process} ended with {status}:\n{}", output.join("\n"))]
    Failed {
        /// Program and host.
        process: String,
        /// How it ended.
        status: ExitStatus,
        /// All it printed.
        output: Vec<String>,
    },
    /// Its memory could not be read.
    #[error("cannot read the resident memory of {process}")]
    Memory {
        /// Program and host.
        process: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It could not be sent a signal.
    #[error("cannot send {signal} to {process}")]
    Signal {
        /// Program and host.
        process: String,
        /// The signal's name.
        signal: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It did not print the line that was waited for.
    #[error("{process} did not print the line that was waited for, but:\n{}", output.join("\n"))]
    Silent {
        /// Program and host.
        process: String,
        /// All it printed.
        output: Vec<String>,
    },
    /// It could not be started.
    #[error("cannot start {process}")]
    Spawn {
        /// Program and host.
        process: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It could not be waited for.
    #[error("cannot wait for the end of {process}")]
    Wait {
        /// Program and host.
        process: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    printed: Notify,
}

impl Output {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first line from number `seen` on that is wanted.
    fn find(&self, seen: &mut usize, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let lines = self.lines();
        let found = lines[*seen..].iter().find(|line| wanted(line)).cloned();
        *seen = lines.len();
        found
    }

    async fn collect(self: Arc<Self>, pipe: impl AsyncRead + Unpin) {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        // An error of a pipe is its end.
        while let Ok(1..) = pipe.read_until(b'\n', &mut line).await {
            let text = String::from_utf8_lossy(&line);
            self.lines().push(text.trim_end_matches(['\r', '\n']).to_owned());
            self.printed.notify_waiters();
            line.clear();
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.lines().len())
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How long the rest of the output is waited for after the end of the process.
const DRAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_from_the_status() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    3456 kB\n"), Some(3456 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
        assert_eq!(resident_bytes("VmRSS:\t99999999999999999999 kB\n"), None);
    }
}
