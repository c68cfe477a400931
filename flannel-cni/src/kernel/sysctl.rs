//! Settings under `/proc/sys/net`, of the namespace that the calling thread is in.

use std::{fs, io, path::PathBuf};

/// Sets it unless it has the value, so that a read-only `/proc` that is right already is fine.
pub(crate) fn ensure(setting: &str, value: &str) -> io::Result<()> {
    let path = path(setting);
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}

/// Sets it if that is possible.
pub(crate) fn try_set(setting: &str, value: &str) {
    // As in containernetworking's plugins: a kernel without IPv6 has no such setting, and needs none.
    let _ = fs::write(path(setting), value);
}

/// With slashes, since names of interfaces may have dots.
fn path(setting: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(setting)
}
