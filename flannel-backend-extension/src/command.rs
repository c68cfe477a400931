//! Running one command.

use std::{io, process::ExitStatus, process::Stdio, time::Duration};

use flannel_netlink::{Namespace, NamespaceError};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    process::{Child, ChildStdin, Command},
    runtime::Handle,
    time::timeout,
};

/// Where and for how long commands are run.
#[derive(Clone, Debug)]
pub(crate) struct Shell {
    pub(crate) namespace: Namespace,
    pub(crate) timeout: Duration,
}

impl Shell {
    /// Runs `text` with these variables and with `input` and a newline, as flannel has it, on its standard input. Returns what it
    /// printed on standard output and standard error, without white space around it.
    ///
    /// # Cancel safety
    ///
    /// Dropping it kills the command with its children.
    pub(crate) async fn run(
        &self,
        text: &str,
        variables: &[(&str, &str)],
        input: &str,
    ) -> Result<String, CommandError> {
        let (mut child, mut output) = self.spawn(text, variables)?;
        let mut group = Group::of(&child);
        let stdin = child.stdin.take();
        let mut feed = std::pin::pin!(feed(stdin, format!("{input}\n")));
        let mut kept = Kept::default();
        let work = async {
            let (mut is_fed, mut is_open) = (false, true);
            let status = loop {
                tokio::select! {
                    () = &mut feed, if !is_fed => is_fed = true,
                    more = kept.read(&mut output), if is_open => is_open = more,
                    status = child.wait() => break status.map_err(CommandError::Run)?,
                }
            };
            // What it printed last may still be in the pipe. A daemon that it has started may hold that open, so this has an end.
            let _ = timeout(DRAIN, async { while kept.read(&mut output).await {} }).await;
            Ok(status)
        };
        let Ok(ended) = timeout(self.timeout, work).await else {
            return Err(CommandError::Late { limit: self.timeout });
        };
        group.0 = None;
        let status = ended?;
        if !status.success() {
            return Err(CommandError::Failed { status, output: shown(&kept.text()) });
        }
        match kept.0.len() {
            0..=OUTPUT => Ok(kept.text()),
            _ => Err(CommandError::Verbose),
        }
    }

    fn spawn(
        &self,
        text: &str,
        variables: &[(&str, &str)],
    ) -> Result<(Child, Receiver), CommandError> {
        let (reader, writer) = io::pipe().map_err(CommandError::Run)?;
        let output = Receiver::from_owned_fd(reader.into()).map_err(CommandError::Run)?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(text).envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stderr(writer.try_clone().map_err(CommandError::Run)?);
        command.stdout(writer).kill_on_drop(true).process_group(0);
        let runtime = Handle::current();
        // A child is in the namespace of the thread that starts it.
        let started = self.namespace.run(|| {
            let _inside = runtime.enter();
            command.spawn()
        });
        let child = started.map_err(CommandError::Namespace)?.map_err(CommandError::Run)?;
        Ok((child, output))
    }
}

/// Why a command did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("{status}{output}")]
    Failed {
        status: ExitStatus,
        /// Empty, or a colon and the end of what it printed.
        output: String,
    },
    #[error("not done after {} s, and killed", limit.as_secs())]
    Late { limit: Duration },
    #[error("cannot enter the network namespace: {0}")]
    Namespace(NamespaceError),
    #[error("cannot run sh: {0}")]
    Run(io::Error),
    #[error("it printed more than {OUTPUT} bytes")]
    Verbose,
}

/// A process group, killed when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader has not been waited for, so that its number is still its own.
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn feed(stdin: Option<ChildStdin>, input: String) {
    if let Some(mut stdin) = stdin {
        // A command need not read it.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
}

/// The beginning of what a command printed.
#[derive(Default)]
struct Kept(Vec<u8>);

impl Kept {
    /// Reads more; `false` at the end.
    async fn read(&mut self, output: &mut Receiver) -> bool {
        let mut buffer = [0; 4096];
        let count = output.read(&mut buffer).await.unwrap_or_default();
        let room = (OUTPUT + 1).saturating_sub(self.0.len());
        self.0.extend_from_slice(&buffer[..count.min(room)]);
        count > 0
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

/// The end of a command's output on one line, for a log.
pub(crate) fn shown(output: &str) -> String {
    let line = output.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    let skipped = line.chars().count().saturating_sub(SHOWN);
    let end: String = line.chars().skip(skipped).filter(|c| !c.is_control()).collect();
    match (end.is_empty(), skipped) {
        (true, _) => String::new(),
        (_, 0) => format!(": {end}"),
        _ => format!(": …{end}"),
    }
}

/// How much of an output is kept, bytes: what fits into a lease.
const OUTPUT: usize = 32 * 1024;
/// How much of it gets into a log line, characters.
const SHOWN: usize = 300;
/// How long the rest of the output is waited for after the command's end.
const DRAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn run(text: &str, limit: Duration) -> Result<String, String> {
        let shell = Shell { namespace: Namespace::current().unwrap(), timeout: limit };
        let run = shell.run(text, &[("SUBNET", "10.1.2.0/24")], "data").await;
        run.map_err(|error| error.to_string())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_command_gets_variables_and_input_and_returns_both_outputs() {
        let said = run("cat; echo \"$SUBNET\"; echo problem >&2; echo", LONG).await;
        assert_eq!(said.as_deref(), Ok("data\n10.1.2.0/24\nproblem"));
    }

    #[tokio::test]
    async fn a_failure_has_status_and_the_end_of_the_output() {
        let said = run("seq 1000; echo cannot >&2; exit 3", LONG).await.unwrap_err();
        assert!(said.starts_with("exit status: 3: …"), "{said}");
        assert!(said.ends_with("999; 1000; cannot"), "{said}");
        assert!(said.len() < 400);
        assert_eq!(run("kill -9 $$", LONG).await.unwrap_err(), "signal: 9 (SIGKILL)");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let text = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let said = run(&text, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(said, "not done after 1 s, and killed");
        let child: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let is_alive = || {
            let status = std::fs::read_to_string(format!("/proc/{child}/stat"));
            status.is_ok_and(|status| !status.contains(") Z "))
        };
        let gone = async {
            while is_alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LONG, gone).await.expect("the child is gone");
    }

    #[tokio::test]
    async fn a_daemon_that_it_starts_is_not_waited_for() {
        let asked = Instant::now();
        let text = "sleep 1000 & echo $!";
        let pid = run(text, LONG).await.unwrap();
        assert!(asked.elapsed() < LONG / 2);
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).expect("the daemon is still there");
    }

    #[tokio::test]
    async fn too_much_output_is_read_and_refused() {
        let said = run("head -c 1000000 /dev/zero | tr '\\0' x", LONG).await;
        assert_eq!(said.unwrap_err(), "it printed more than 32768 bytes");
    }
}
