//! Puts the program where a container runtime looks for plugins.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
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

/// Copies `program` into `folder`, and once more under the name of each plugin. Each name changes in one step, so that containers
/// may come meanwhile. Names that other programs have are left to them, except those in `replace`.
///
/// The names are files of their own, not links to one: others' installers write into the file that has the name, as flannel's
/// `cp -f` does, and would change all plugins at once.
///
/// # Errors
///
/// When something cannot be read or written. What was done before that is complete.
pub fn install(
    program: &Path,
    folder: &Path,
    replace: &[Plugin],
) -> Result<Vec<(&'static str, Installed)>, InstallError> {
    let failed =
        |operation, path: &Path, source| InstallError { operation, path: path.to_owned(), source };
    let content = fs::read(program).map_err(|error| failed("read", program, error))?;
    fs::create_dir_all(folder).map_err(|error| failed("make", folder, error))?;
    let mut done = Vec::new();
    for plugin in Plugin::ALL {
        let path = folder.join(plugin.name());
        let free = path.symlink_metadata().is_err() || replace.contains(&plugin) || is_ours(&path);
        if free {
            put(&content, &path).map_err(|error| failed("write", &path, error))?;
        }
        let outcome = if free { Installed::Made } else { Installed::LeftAlone };
        done.push((plugin.name(), outcome));
    }
    let path = folder.join(PROGRAM);
    put(&content, &path).map_err(|error| failed("write", &path, error))?;
    Ok(done)
}

/// Removes what [`install`] put into `folder`.
///
/// # Errors
///
/// When something cannot be removed.
pub fn uninstall(folder: &Path) -> Result<Vec<(&'static str, Installed)>, InstallError> {
    let mut done = Vec::new();
    for name in Plugin::ALL.map(Plugin::name).into_iter().chain([PROGRAM]) {
        let path = folder.join(name);
        if is_ours(&path) {
            fs::remove_file(&path).map_err(|source| InstallError {
                operation: "remove",
                path,
                source,
            })?;
            done.push((name, Installed::Removed));
        } else if path.symlink_metadata().is_ok() {
            done.push((name, Installed::LeftAlone));
        }
    }
    Ok(done)
}

/// Makes `path` a program with this content, in one step, unless it is that already.
fn put(content: &[u8], path: &Path) -> io::Result<()> {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777);
    if !is_link && mode.is_ok_and(|mode| mode == MODE) && fs::read(path)? == content {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = path.with_file_name(format!(".{name}.new"));
    let write = || {
        fs::write(&unfinished, content)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(MODE))?;
        // A machine that loses power has the old one or the new one.
        fs::File::open(&unfinished)?.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

/// Whether it is this program, of any version.
fn is_ours(path: &Path) -> bool {
    fs::read(path).is_ok_and(|content| content.windows(MARK.len()).any(|text| text == MARK))
}

const PROGRAM: &str = "flannel-cni";
const MODE: u32 = 0o755;
/// The program has this text because it looks for it.
const MARK: &[u8] = b"This is flannel-cni, the CNI plugins of flannel-node.";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn write_version(program: &Path, version: &str) {
        fs::write(program, [MARK, version.as_bytes()].concat()).unwrap();
    }

    #[test]
    fn names_of_others_are_left_alone_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("cni/bin"));
        write_version(&program, "one");
        fs::create_dir_all(&bin).unwrap();
        for name in ["bridge", "flannel"] {
            fs::write(bin.join(name), "another's").unwrap();
        }
        let done = install(&program, &bin, &[Plugin::Flannel]).unwrap();
        assert_eq!(done[0], ("bridge", Installed::LeftAlone));
        assert!(done[1..].iter().all(|(_, done)| *done == Installed::Made), "{done:?}");
        assert_eq!(fs::read(bin.join("bridge")).unwrap(), b"another's");
        let is_program = |name: &str| {
            fs::read(bin.join(name)).unwrap() == fs::read(&program).unwrap()
                && fs::metadata(bin.join(name)).unwrap().permissions().mode() & 0o777 == 0o755
        };
        assert!(
            ["flannel", "host-local", "loopback", "portmap", "flannel-cni"]
                .iter()
                .all(|it| is_program(it))
        );
        // A newer one takes the place of those, and of all if it is told to.
        write_version(&program, "two");
        install(&program, &bin, &[]).unwrap();
        assert!(is_program("flannel") && is_program("portmap") && !is_program("bridge"));
        install(&program, &bin, &Plugin::ALL).unwrap();
        assert!(is_program("bridge"));
        let mut left: Vec<_> =
            fs::read_dir(&bin).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["bridge", "flannel", "flannel-cni", "host-local", "loopback", "portmap"]);
    }

    #[test]
    fn another_installer_that_writes_into_a_name_changes_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("bin"));
        write_version(&program, "one");
        // As k3s has it: all names are links to one program.
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("cni"), "another's").unwrap();
        symlink("cni", bin.join("flannel")).unwrap();
        install(&program, &bin, &[Plugin::Flannel]).unwrap();
        assert_eq!(fs::read(bin.join("cni")).unwrap(), b"another's");
        // What cp does.
        fs::write(bin.join("flannel"), "flannel's").unwrap();
        for name in ["bridge", "portmap", "flannel-cni"] {
            assert_eq!(fs::read(bin.join(name)).unwrap(), fs::read(&program).unwrap(), "{name}");
        }
        assert_eq!(install(&program, &bin, &[]).unwrap()[1], ("flannel", Installed::LeftAlone));
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("bin"));
        write_version(&program, "one");
        install(&program, &bin, &[]).unwrap();
        let inode = || fs::metadata(bin.join("flannel")).unwrap().ino();
        let before = inode();
        install(&program, &bin, &[]).unwrap();
        assert_eq!(inode(), before);
        fs::set_permissions(bin.join("flannel"), fs::Permissions::from_mode(0o644)).unwrap();
        install(&program, &bin, &[]).unwrap();
        assert_ne!(inode(), before, "nobody could run it");
        fs::remove_file(bin.join("flannel")).unwrap();
        symlink(PROGRAM, bin.join("flannel")).unwrap();
        install(&program, &bin, &[]).unwrap();
        assert!(!bin.join("flannel").is_symlink(), "what is written there would change both");
    }

    #[test]
    fn uninstall_removes_what_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (program, bin) = (folder.path().join("program"), folder.path().join("bin"));
        write_version(&program, "one");
        install(&program, &bin, &[]).unwrap();
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
        let error = install(&file, &file, &[]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make {}", file.display()));
    }
}
