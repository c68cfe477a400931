//! Which folders lead to a file.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

/// The folder that a file is in, and those with symbolic links on the way to it: whoever replaces a certificate points such a link at
/// another folder beside the one before, as Kubernetes does with `..data`. Folders of the root, such as `/var`, are left out for the
/// sake of a link in them.
pub(super) fn folders_on_the_way(file: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let Ok(path) = std::path::absolute(file) else { return folders };
    let mut ahead = names(&path).collect::<VecDeque<_>>();
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match std::fs::read_link(&next) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                if at.components().count() > 2 {
                    folders.insert(at.clone());
                }
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                names(&target).rev().for_each(|name| ahead.push_front(name));
            }
            _ if ahead.is_empty() => drop(folders.insert(at.clone())),
            _ => at = next,
        }
    }
    folders
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect::<Vec<_>>().into_iter()
}

/// As the kernel follows at most.
const MOST_LINKS: u32 = 40;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::Barrier, thread};

    use super::*;
    use crate::sandbox::files;

    #[test]
    fn a_certificate_behind_links_is_read_also_after_it_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for (version, text) in [("secret/..1", "old"), ("secret/..2", "new")] {
            fs::create_dir_all(path(version)).unwrap();
            fs::write(path(version).join("ca.pem"), text).unwrap();
        }
        fs::create_dir(path("etc")).unwrap();
        symlink("..1", path("secret/..data")).unwrap();
        symlink("../secret/..data/ca.pem", path("etc/ca.pem")).unwrap();
        let file = path("etc/ca.pem");
        let folders: Vec<_> = folders_on_the_way(&file).into_iter().collect();
        assert_eq!(folders, ["etc", "secret", "secret/..1"].map(path));
        let (restricted, replaced) = (Barrier::new(2), Barrier::new(2));
        let read = thread::scope(|scope| {
            let reads = scope.spawn(|| {
                files::restrict(&folders, &[]);
                restricted.wait();
                let before = fs::read_to_string(&file);
                replaced.wait();
                replaced.wait();
                [before, fs::read_to_string(&file)]
            });
            restricted.wait();
            replaced.wait();
            symlink("..2", path("secret/..new")).unwrap();
            fs::rename(path("secret/..new"), path("secret/..data")).unwrap();
            replaced.wait();
            reads.join().unwrap()
        });
        assert_eq!(read.map(Result::unwrap), ["old", "new"]);
    }

    #[test]
    fn a_plain_file_is_in_its_folder_and_a_loop_ends() {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().canonicalize().unwrap();
        assert_eq!(folders_on_the_way(&above.join("ca.pem")), [above.clone()].into());
        symlink("loop", above.join("loop")).unwrap();
        assert_eq!(folders_on_the_way(&above.join("loop")), [above].into());
    }
}
