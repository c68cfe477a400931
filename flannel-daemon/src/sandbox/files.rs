//! The file system, by Landlock.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};

/// Makes the file that legacy iptables locks, as that does: once the sandbox is in force there can be no rule about a file that is not
/// there. What fails shows when it is locked.
pub(super) fn ensure_lock_file(path: &Path) {
    let mut options = fs::OpenOptions::new();
    let _ = options.append(true).create(true).mode(0o600).open(path);
}

/// Leaves this thread what a node reads, with `read` and what is in `write`. Says in words what is in force.
pub(super) fn restrict(read: &[PathBuf], write: &[PathBuf]) -> String {
    match apply(read, write) {
        Ok(RulesetStatus::FullyEnforced) => "restricted by Landlock".into(),
        Ok(RulesetStatus::PartiallyEnforced) => "restricted by an old Landlock".into(),
        Ok(_) => "not restricted, this kernel has no Landlock".into(),
        Err(error) => format!("not restricted: {error}"),
    }
}

fn apply(read: &[PathBuf], write: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    // A node makes files, folders and sockets.
    let unused = AccessFs::Execute
        | AccessFs::MakeBlock
        | AccessFs::MakeChar
        | AccessFs::MakeFifo
        | AccessFs::MakeSym;
    let look = AccessFs::ReadFile | AccessFs::ReadDir;
    let settings = look | AccessFs::WriteFile | AccessFs::Truncate;
    let named: Vec<_> =
        CERTIFICATES.iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    let status = Ruleset::default()
        .handle_access(all)?
        .create()?
        .add_rules(path_beneath_rules(PROGRAMS, look | AccessFs::Execute))?
        .add_rules(path_beneath_rules(READ.iter().map(Path::new), look))?
        .add_rules(path_beneath_rules(read.iter().chain(&named), look))?
        .add_rules(path_beneath_rules(WRITTEN_FILES, settings))?
        .add_rules(path_beneath_rules(write, all & !unused))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Linux 6.2. Later ones restrict `ioctl` on devices and sockets, which a node uses as it needs.
const VERSION: ABI = ABI::V3;
/// Programs and their libraries, also on systems that keep them in a store.
const PROGRAMS: [&str; 8] =
    ["/bin", "/gnu/store", "/lib", "/lib64", "/nix/store", "/sbin", "/usr", "/run/current-system"];
/// Names of hosts and certificates, the kernel's own files, and where resolv.conf leads to.
const READ: [&str; 8] = [
    "/dev",
    "/etc",
    "/proc",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/systemd/resolve",
    "/sys",
    "/var/lib/ca-certificates",
];
/// Kernel settings, the device of userspace tunnels, what iptables locks, and what programs print into.
const WRITTEN_FILES: [&str; 4] = ["/dev/net/tun", "/dev/null", "/proc/sys/net", XTABLES_LOCK];
/// What legacy iptables locks.
pub(super) const XTABLES_LOCK: &str = "/run/xtables.lock";
/// Where an operator says that certificates are, instead of in the system's places.
const CERTIFICATES: [&str; 2] = ["SSL_CERT_DIR", "SSL_CERT_FILE"];

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, thread};

    use super::*;

    #[test]
    fn the_lock_of_iptables_is_made_once_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xtables.lock");
        ensure_lock_file(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "x").unwrap();
        ensure_lock_file(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
    }

    #[test]
    fn only_what_was_named_can_be_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "x").unwrap();
        }
        let (read, write) = ([path("read")], [path("write")]);
        // The restriction ends with the thread.
        let inside = thread::scope(|scope| {
            let restricted = || {
                let says = restrict(&read, &write);
                let reads = |name: &str| fs::read(path(name).join("file")).is_ok();
                let writes = |name: &str| fs::write(path(name).join("file"), "y").is_ok();
                let moves = fs::rename(path("write/file"), path("write/moved")).is_ok();
                (says, ["read", "other"].map(reads), ["read", "write", "other"].map(writes), moves)
            };
            scope.spawn(restricted).join().unwrap()
        });
        let says = "restricted by Landlock".to_owned();
        assert_eq!(inside, (says, [true, false], [false, true, false], true));
    }
}
