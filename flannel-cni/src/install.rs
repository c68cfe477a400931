//! Puts the program where a container runtime looks for plugins.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::plugin::Plugin;

/// What was done with one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Installed {
    /// Another program has the name, and keeps it.
    LeftAlone,
    /// It is this program now.
    Made,
    /// It is this program no more.
    Removed,
}

/// Why the program could not be put there, or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct InstallError {
    /// What was tried.
    pub operation: &'static str,
    /// With what.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// Copies `program` into `folder`, and gives it the name of each plugin there. Each name changes in one step, so that containers
/// may come meanwhile. Names that other programs have are left to them, unless `replace` is set.
///
/// # Errors
///
/// When something cannot be written. What was done before that is complete.
pub fn install(
    program: &Path,
    folder: &Path,
    replace: bool,
) -> Result<Vec<(&'static str, Installed)>, InstallError> {
    let target = folder.join(PROGRAM);
    let unfinished = folder.join(format!(".{PROGRAM}.new"));
    let copy = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::copy(program, &unfinished)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        // A machine that loses power has the old one or the new one.
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, &target)
    };
    copy().map_err(|source| {
        let _ = fs::remove_file(&unfinished);
        InstallError { operation: "write", path: target.clone(), source }
    })?;
    let mut done = Vec::new();
    for name in Plugin::ALL.map(Plugin::name) {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok() && !is_ours(&path) && !replace {
            done.push((name, Installed::LeftAlone));
            continue;
        }
        let unfinished = folder.join(format!(".{name}.new"));
        let link = || -> io::Result<()> {
            let _ = fs::remove_file(&unfinished);
            symlink(PROGRAM, &unfinished)?;
            fs::rename(&unfinished, &path)
        };
        link().map_err(|source| InstallError { operation: "write", path, source })?;
        done.push((name, Installed::Made));
    }
    Ok(done)
}

/// Removes what [`install`] put into `folder`.
///
/// # Errors
///
/// When something cannot be removed.
pub fn uninstall(folder: &Path) -> Result<Vec<(&'static str, Installed)>, InstallError> {
    let remove = |path: PathBuf| match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(InstallError { operation: "remove", path, source })
        }
        _ => Ok(()),
    };
    let mut done = Vec::new();
    for name in Plugin::ALL.map(Plugin::name) {
        let path = folder.join(name);
        if is_ours(&path) {
            remove(path)?;
            done.push((name, Installed::Removed));
        } else if path.symlink_metadata().is_ok() {
            done.push((name, Installed::LeftAlone));
        }
    }
    remove(folder.join(PROGRAM))?;
    Ok(done)
}

/// Whether it is a name of the program.
fn is_ours(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target == Path::new(PROGRAM))
}

const PROGRAM: &str = "flannel-cni";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_left_alone_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("cni/bin"));
        fs::write(&program, "one").unwrap();
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("bridge"), "another's").unwrap();
        let done = install(&program, &bin, false).unwrap();
        assert_eq!(done[0], ("bridge", Installed::LeftAlone));
        assert!(done[1..].iter().all(|(_, done)| *done == Installed::Made));
        assert_eq!(fs::read_to_string(bin.join("bridge")).unwrap(), "another's");
        assert_eq!(fs::read_to_string(bin.join("flannel")).unwrap(), "one");
        let mode = fs::metadata(bin.join("flannel")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        // A newer one takes the place of all of them.
        fs::write(&program, "two").unwrap();
        install(&program, &bin, true).unwrap();
        for plugin in Plugin::ALL {
            assert_eq!(fs::read_to_string(bin.join(plugin.name())).unwrap(), "two");
        }
    }

    #[test]
    fn uninstall_removes_what_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("bin"));
        fs::write(&program, "one").unwrap();
        install(&program, &bin, false).unwrap();
        fs::remove_file(bin.join("bridge")).unwrap();
        fs::write(bin.join("bridge"), "another's").unwrap();
        let done = uninstall(&bin).unwrap();
        assert_eq!(done[0], ("bridge", Installed::LeftAlone));
        let left: Vec<_> = fs::read_dir(&bin).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["bridge"]);
        assert!(uninstall(&bin).is_ok(), "once more");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = install(&file, &file, false).unwrap_err();
        assert_eq!(error.path, file.join(PROGRAM));
    }
}
