//! The configuration of the container runtime's network, installed as flannel's `install-conf` does.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;
use thiserror::Error;

use crate::{atomic_file, error::FileError};

/// Why a CNI configuration was not installed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CniConfError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The text is not JSON, so no runtime could read it.
    #[error("{} is no CNI configuration", path.display())]
    Malformed {
        /// The file with the text.
        path: PathBuf,
        /// Where it stops being JSON.
        source: serde_json::Error,
    },
}

/// Copies a CNI configuration to where the container runtime reads it, in one step: the runtime never reads half a file.
///
/// Returns whether anything was written: a destination that has the text already stays as it is, because a runtime loads its
/// configuration again with every write.
///
/// # Errors
///
/// The source cannot be read or is not JSON, or the destination cannot be written. Nothing is written then.
pub fn install(source: &Path, destination: &Path) -> Result<bool, CniConfError> {
    let unread =
        |path: &Path, source| FileError { operation: "read", path: path.to_owned(), source };
    let text = fs::read_to_string(source).map_err(|error| unread(source, error))?;
    if let Err(error) = serde_json::from_str::<IgnoredAny>(&text) {
        return Err(CniConfError::Malformed { path: source.to_owned(), source: error });
    }
    match fs::read_to_string(destination) {
        Ok(present) if present == text => return Ok(false),
        // What is not text is replaced as well.
        Err(error)
            if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) =>
        {
            return Err(unread(destination, error).into());
        }
        _ => {}
    }
    atomic_file::write(destination, &text)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_configuration_is_installed_once() {
        let folder = tempfile::tempdir().unwrap();
        let [source, destination] =
            ["cni-conf.json", "net.d/10-flannel.conflist"].map(|name| folder.path().join(name));
        let inode = || fs::metadata(&destination).unwrap().ino();
        fs::write(&source, r#"{"name": "cbr0"}"#).unwrap();
        assert!(install(&source, &destination).unwrap());
        assert_eq!(fs::read(&destination).unwrap(), fs::read(&source).unwrap());
        let first = inode();
        assert!(!install(&source, &destination).unwrap());
        assert_eq!(inode(), first, "written again");
        fs::write(&source, r#"{"name": "cbr1"}"#).unwrap();
        assert!(install(&source, &destination).unwrap());
        assert_eq!(fs::read(&destination).unwrap(), fs::read(&source).unwrap());
        assert_eq!(
            fs::read_dir(destination.parent().unwrap()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }

    #[test]
    fn what_no_runtime_could_read_is_not_installed() {
        let folder = tempfile::tempdir().unwrap();
        let [source, destination] =
            ["cni-conf.json", "10-flannel.conflist"].map(|name| folder.path().join(name));
        fs::write(&destination, "{}").unwrap();
        for text in ["", "{\"name\": ", "{} {}"] {
            fs::write(&source, text).unwrap();
            let error = install(&source, &destination).unwrap_err().to_string();
            assert!(error.contains("cni-conf.json is no CNI configuration"), "{error}");
        }
        assert_eq!(fs::read_to_string(&destination).unwrap(), "{}");
    }
}
