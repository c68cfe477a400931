//! iptables, which has to be run as a program: save prints the rules, restore changes a table at once.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use flannel_netlink::{Namespace, NamespaceError};
use tokio::{io::AsyncWriteExt, process::Command, runtime::Handle, time::timeout};

use super::Listing;
use crate::{
    leftovers::{find_legacy, legacy_tables},
    rules::{Family, Rules},
};

/// The iptables of one family, in one namespace.
#[derive(Clone, Debug)]
pub struct Program {
    namespace: Namespace,
    save: PathBuf,
    restore: PathBuf,
    version: Version,
    runs: RunCounter,
}

/// How often programs were run. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct RunCounter(Arc<AtomicU64>);

impl RunCounter {
    /// How often since the last time that this was asked.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// What `iptables --version` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    number: (u32, u32, u32),
    /// Whether rules are kept by nf_tables, which tells of changes.
    nftables: bool,
}

impl Program {
    /// Looks for the programs, in `folders` or else in `PATH` and where they usually are; `None` if they are not all there. `variant`
    /// is `""` or `"-legacy"`.
    ///
    /// # Errors
    ///
    /// When it has to be run to say what it is, and does not say it.
    pub async fn find(
        namespace: &Namespace,
        folders: &[PathBuf],
        family: Family,
        variant: &str,
        runs: &RunCounter,
    ) -> Result<Option<Self>, ProgramError> {
        let name = match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        let find = |suffix: &str| find_file(folders, &format!("{name}{variant}{suffix}"));
        let (Some(program), Some(save), Some(restore)) =
            (find(""), find("-save"), find("-restore"))
        else {
            return Ok(None);
        };
        let runs = runs.clone();
        let version = match Version::of_file(&program) {
            Some(version) => version,
            None => {
                let said = run(namespace, program.clone(), &["--version"], None, &runs).await?;
                Version::parse(&said).ok_or_else(|| ProgramError::Version {
                    program,
                    said: said.trim().to_owned(),
                })?
            }
        };
        Ok(Some(Self { namespace: namespace.clone(), save, restore, version, runs }))
    }

    /// The program of legacy iptables, if legacy iptables has this table in the namespace.
    pub async fn legacy(namespace: &Namespace, family: Family, table: &str) -> Option<Self> {
        if !legacy_tables(namespace, family)?.contains(table) {
            return None;
        }
        find_legacy(namespace, &[], family, &RunCounter::default()).await
    }

    /// Where it works.
    pub(crate) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether its rules are in nf_tables, whose changes the kernel tells of; those of legacy iptables are not.
    pub const fn notifies(&self) -> bool {
        self.version.nftables
    }

    /// The rules as far as it knows them: `--random-fully` came with 1.6.2.
    pub(crate) fn able(&self, rules: Rules) -> Rules {
        if self.version.number >= (1, 6, 2) { rules } else { rules.without_random_ports() }
    }

    /// All rules.
    ///
    /// # Errors
    ///
    /// When the program cannot be run or does not succeed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the program.
    pub async fn list(&self) -> Result<Listing, ProgramError> {
        let text = run(&self.namespace, self.save.clone(), &[], None, &self.runs).await?;
        Ok(Listing::parse(&text))
    }

    /// Changes the tables of a payload, which is what `iptables-restore` reads, each as a whole or not at all.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the program, which may have changed some of the tables.
    pub async fn change(&self, payload: String) -> Result<(), ProgramError> {
        let wait = ["--noflush", "--wait", LOCK_PATIENCE_SECONDS];
        // Older ones do not wait for others, and fail instead.
        let known = if self.version.number >= (1, 6, 2) { wait.len() } else { 1 };
        let program = self.restore.clone();
        run(&self.namespace, program, &wait[..known], Some(payload), &self.runs).await.map(drop)
    }
}

impl Version {
    /// What the file's name tells, behind all links: since 1.8.0 one program is all iptables of its kind.
    fn of_file(program: &Path) -> Option<Self> {
        let nftables = match program.canonicalize().ok()?.file_name()?.to_str()? {
            "xtables-legacy-multi" => false,
            "xtables-nft-multi" => true,
            _ => return None,
        };
        Some(Self { number: (1, 8, 0), nftables })
    }

    /// Reads `iptables v1.8.9 (nf_tables)`. Before 1.8 there is only legacy.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let digits = words.find_map(|word| word.strip_prefix('v'))?;
        let mut numbers = digits.split('.').map(|part| {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().unwrap_or(0)
        });
        let mut next = || numbers.next().unwrap_or(0);
        let number = (next(), next(), next());
        Some(Self { number, nftables: words.next() == Some("(nf_tables)") })
    }
}

/// Whether a program of legacy iptables is installed, as far as names tell. Keeping its rules, and removing those that it has from
/// before, takes `CAP_NET_RAW`: it talks to the kernel through a raw socket.
pub fn needs_net_raw() -> bool {
    let names = ["iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"];
    let mut found = search(&[])
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .filter(|it| it.is_file());
    found.any(|program| is_legacy(&program))
}

/// Whether this thread may open raw sockets, which is how legacy iptables talks to the kernel.
fn has_net_raw() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_none_or(|bits| bits & 1 << CAP_NET_RAW != 0)
}

/// Why iptables did not do what it should.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
#[non_exhaustive]
pub enum ProgramError {
    #[error("{} says: {stderr} ({status})", program.display())]
    Failed { program: PathBuf, status: ExitStatus, stderr: String },
    #[error("{} did not end within {} s", program.display(), PATIENCE.as_secs())]
    Late { program: PathBuf },
    #[error(
        "{} needs CAP_NET_RAW, which this process lacks or has given up: {stderr}", program.display()
    )]
    MissingNetRaw { program: PathBuf, stderr: String },
    #[error("cannot enter the network namespace")]
    Namespace { source: NamespaceError },
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("{} --version says {said:?}, which names no version", program.display())]
    Version { program: PathBuf, said: String },
}

impl ProgramError {
    /// Whether trying again is of no use.
    pub(crate) const fn is_lasting(&self) -> bool {
        matches!(self, Self::MissingNetRaw { .. } | Self::Run { .. })
    }
}

/// Looks for a program in `PATH`, and where iptables usually is.
pub fn find_program(name: &str) -> Option<PathBuf> {
    find_file(&[], name)
}

fn find_file(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    search(folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn search(folders: &[PathBuf]) -> impl Iterator<Item = PathBuf> {
    let usual = folders.is_empty();
    let path = usual.then(|| env::var_os("PATH")).flatten();
    let path: Vec<_> = path.iter().flat_map(env::split_paths).collect();
    let more = if usual { USUAL_FOLDERS } else { &[] };
    folders.iter().cloned().chain(path).chain(more.iter().map(PathBuf::from))
}

/// Runs a program inside of a namespace to its end. It is killed when the future is dropped.
async fn run(
    namespace: &Namespace,
    program: PathBuf,
    arguments: &[&str],
    input: Option<String>,
    runs: &RunCounter,
) -> Result<String, ProgramError> {
    runs.0.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(program = %program.display(), ?arguments, input, "running");
    let mut command = Command::new(&program);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let failed = |source| ProgramError::Run { program: program.clone(), source };
    let runtime = Handle::current();
    // A child is in the namespace of the thread that starts it.
    let started = namespace.run(|| {
        let _inside = runtime.enter();
        command.spawn()
    });
    let mut child =
        started.map_err(|source| ProgramError::Namespace { source })?.map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // Who does not read to the end says why on standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let work = async { tokio::join!(feed, child.wait_with_output()).1 };
    let Ok(output) = timeout(PATIENCE, work).await else {
        return Err(ProgramError::Late { program });
    };
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        if is_legacy(&program) && !has_net_raw() {
            return Err(ProgramError::MissingNetRaw { program, stderr });
        }
        return Err(ProgramError::Failed { program, status: output.status, stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the program, behind all links, is legacy iptables, as far as its name tells.
fn is_legacy(program: &Path) -> bool {
    Version::of_file(program).is_none_or(|version| !version.nftables)
}

/// Where distributions install iptables, for those whose `PATH` lacks it.
const USUAL_FOLDERS: &[&str] = &["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// linux/capability.h
const CAP_NET_RAW: u32 = 13;
/// How long iptables waits for another iptables, in seconds.
const LOCK_PATIENCE_SECONDS: &str = "5";
/// How long one run may take: with 30,000 rules it takes less than a second.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_all_releases_print_them() {
        let version = |text: &str| {
            let read = Version::parse(text);
            read.map(|version| (version.number, version.nftables))
        };
        assert_eq!(version("iptables v1.8.9 (nf_tables)\n"), Some(((1, 8, 9), true)));
        assert_eq!(version("iptables v1.8.9 (legacy)\n"), Some(((1, 8, 9), false)));
        assert_eq!(version("iptables v1.6.1"), Some(((1, 6, 1), false)));
        assert_eq!(version("ip6tables v1.4.21"), Some(((1, 4, 21), false)));
        assert_eq!(version("iptables v1.10.0-rc1 (nf_tables)"), Some(((1, 10, 0), true)));
        assert_eq!(version("iptables: command not found"), None);
    }

    #[test]
    fn a_file_behind_links_tells_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let version = |program: &str| {
            let link = folder.path().join(format!("to-{program}"));
            fs::write(folder.path().join(program), "").unwrap();
            std::os::unix::fs::symlink(program, &link).unwrap();
            Version::of_file(&link)
        };
        let known = |nftables| Some(Version { number: (1, 8, 0), nftables });
        assert_eq!(version("xtables-nft-multi"), known(true));
        assert_eq!(version("xtables-legacy-multi"), known(false));
        // Before 1.8.0, and scripts that choose.
        assert_eq!((version("xtables-multi"), version("iptables-wrapper")), (None, None));
        assert_eq!(Version::of_file(Path::new("/no/such")), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}", digits in "v[0-9.a-z]{0,20}") {
            let _ = (Version::parse(&text), Version::parse(&digits));
        }
    }
}
