use std::{fs, io, path::Path};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getgid, getuid},
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// Whether this process may make and configure network namespaces: `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` are effective.
pub fn capable() -> bool {
    fs::read_to_string("/proc/thread-self/status")
        .ok()
        .and_then(|status| effective_capabilities(&status))
        .is_some_and(|set| set & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES)
}

/// Moves this process into a user and a network namespace of its own, where an ordinary user may build a testbed.
///
/// To be called first thing in `main`, before any thread or runtime is started, when [`capable`] says no. The user is
/// root inside, with the rights of the same user outside: files keep their owner.
///
/// # Errors
///
/// [`PrivilegeError`], which names the setting when the distribution forbids user namespaces.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// if !flannel_testbed::capable() {
///     flannel_testbed::enter_user_namespace()?;
/// }
/// # Ok(())
/// # }
/// ```
pub fn enter_user_namespace() -> Result<(), PrivilegeError> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
        .map_err(|errno| refused(errno.into()))?;
    // The kernel asks for the second before an ordinary user may map a group.
    for (path, text) in [
        ("/proc/self/uid_map", format!("0 {uid} 1")),
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("0 {gid} 1")),
    ] {
        fs::write(path, text).map_err(refused)?;
    }
    if !capable() {
        return Err(refused(io::ErrorKind::PermissionDenied.into()));
    }
    Ok(())
}

/// This thread may change nothing of any network, until it is dropped.
pub struct Powerless(CapabilitySets);

impl Powerless {
    /// Takes `CAP_NET_ADMIN` from the thread.
    ///
    /// # Panics
    ///
    /// If the kernel refuses, which it does not.
    #[must_use]
    pub fn enter() -> Self {
        let before = capabilities(None).unwrap();
        let effective = before.effective - CapabilitySet::NET_ADMIN;
        set_capabilities(None, CapabilitySets { effective, ..before }).unwrap();
        Self(before)
    }
}

impl Drop for Powerless {
    fn drop(&mut self) {
        set_capabilities(None, self.0).unwrap();
    }
}

/// Why the process could not get the rights to build a testbed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivilegeError {
    /// A setting of this machine forbids user namespaces.
    #[error(
        "cannot enter a user namespace: {setting} is {value}; run as root or set it to {needed}"
    )]
    Forbidden {
        /// The kernel setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// A value that would allow it.
        needed: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The process has more than one thread, so it is too late.
    #[error(
        "cannot enter a user namespace: the process has {threads} threads; do it before the first is started"
    )]
    Threads {
        /// How many there are.
        threads: usize,
    },
    /// The kernel refused for another reason, such as the seccomp filter of a container.
    #[error("cannot enter a user namespace; run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    Refused {
        /// The kernel's reason.
        source: io::Error,
    },
}

fn refused(source: io::Error) -> PrivilegeError {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return PrivilegeError::Threads { threads };
    }
    let value = |setting| {
        let path = Path::new("/proc/sys").join(str::replace(setting, ".", "/"));
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned())
    };
    match forbidding(value) {
        Some((setting, value, needed)) => {
            PrivilegeError::Forbidden { setting, value, needed, source }
        }
        None => PrivilegeError::Refused { source },
    }
}

/// The first setting that forbids user namespaces, with its value and one that would do.
fn forbidding(
    value: impl Fn(&'static str) -> Option<String>,
) -> Option<(&'static str, String, &'static str)> {
    FORBIDDING.iter().find_map(|&(setting, bad, good)| {
        Some((setting, value(setting).filter(|v| v == bad)?, good))
    })
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Debian's switch, the kernel's own limits, and the one of Ubuntu since 23.10.
const FORBIDDING: [(&str, &str, &str); 4] = [
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "15000"),
    ("user.max_net_namespaces", "0", "15000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
];
/// `CAP_NET_ADMIN` (12) and `CAP_SYS_ADMIN` (21) of linux/capability.h.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 21;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read_from_the_status() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn the_forbidding_setting_is_named() {
        let ubuntu = |setting: &str| {
            let value = if setting.starts_with("kernel.apparmor") { "1" } else { "100" };
            Some(value.to_owned())
        };
        let (setting, value, needed) = forbidding(ubuntu).unwrap();
        assert_eq!(setting, "kernel.apparmor_restrict_unprivileged_userns");
        assert_eq!((value.as_str(), needed), ("1", "0"));
        assert_eq!(forbidding(|_| None), None);
    }

    #[test]
    fn a_process_with_threads_is_told_so() {
        // The test harness has a main thread beside this one.
        let error = enter_user_namespace().unwrap_err();
        assert!(matches!(error, PrivilegeError::Threads { threads: 2.. }), "{error}");
    }
}
