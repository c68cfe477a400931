//! Files that others never see half written.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::Builder;

use crate::error::FileError;

/// Puts `text` at `path` in one step, so that no reader ever sees half a file, and so that it is there after a power failure.
/// Folders that are missing are made.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), FileError> {
    // Readers are other users, whatever our umask says: 0644 as flannel's.
    write_with(path, text, 0o644)
}

/// The same of what only this user may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    write_with(path, text, 0o600)
}

fn write_with(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let write = || {
        let folder = make_folder(path)?;
        let mut file = Builder::new().prefix(".flannel-").tempfile_in(folder)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| FileError { operation: "write", path: path.to_owned(), source })
}

/// The folder of a file, made if it is not there: others may look into it, whatever our umask says, 0755 as flannel's.
pub(crate) fn make_folder(file: &Path) -> io::Result<&Path> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}
