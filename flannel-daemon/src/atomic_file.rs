//! Files that others never see half written.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use tempfile::Builder;

/// Puts `text` at `path` in one step, so that no reader ever sees half a file, and so that it is there after a power failure.
/// Folders that are missing are made.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let folder = make_folder(path).with_context(context)?;
    let mut file = Builder::new().prefix(".flannel-").tempfile_in(folder).with_context(context)?;
    // Readers are other users, whatever our umask says: 0644 as flannel's.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).with_context(context)?;
    file.write_all(text.as_bytes()).with_context(context)?;
    file.as_file().sync_all().with_context(context)?;
    file.persist(path).with_context(context)?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)
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
