//! Writes `subnet.env`.

use std::{fs, path::Path};

use flannel_core::SubnetEnv;

use crate::{atomic_file, error::FileError};

/// What the last writer left at `path`; empty if there is no such file.
pub fn read(path: &Path) -> SubnetEnv {
    text(path).map(|text| SubnetEnv::parse(&text)).unwrap_or_default()
}

/// The file as it is; `None` if there is none that can be read.
pub(crate) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Puts `env` at `path` in one step.
pub(crate) fn write(path: &Path, env: &SubnetEnv) -> Result<(), FileError> {
    atomic_file::write(path, &env.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_can_be_read_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/flannel/subnet.env");
        for subnet in ["10.3.7.1/24", "10.3.8.1/24"] {
            let text = format!(
                "FLANNEL_NETWORK=10.3.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
            );
            write(&path, &SubnetEnv::parse(&text)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(read(&path), SubnetEnv::parse(&text));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = write(Path::new("/proc/no/subnet.env"), &SubnetEnv::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /proc/no/subnet.env");
        assert_eq!(read(Path::new("/no/such/file")), SubnetEnv::default());
    }
}
