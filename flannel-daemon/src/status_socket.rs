//! The local socket of a node, for operators.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tracing::warn;

use crate::atomic_file;

/// A socket that is removed with this value, unless another process has put its own there by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Listens at `path`, for the owner of this process only.
///
/// The socket of a node that was killed is replaced. So is that of one that runs, which is said: two nodes of one subnet file
/// are a mistake, except while one takes over from the other.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let context = || format!("cannot listen on {}", path.display());
    let folder = atomic_file::make_folder(path).with_context(context)?;
    if UnixStream::connect(path).is_ok() {
        warn!(socket = %path.display(), "another node runs with this subnet file; its socket is taken over");
    }
    // A folder that nobody else may enter, so that nobody connects before the permissions are right.
    let hidden = tempfile::Builder::new().prefix(".s").rand_bytes(4).tempdir_in(folder);
    let hidden = hidden.with_context(context)?;
    let made = hidden.path().join("s");
    let listener = UnixListener::bind(&made).with_context(context)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600)).with_context(context)?;
    let inode = fs::symlink_metadata(&made).with_context(context)?.ino();
    fs::rename(&made, path).with_context(context)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// The socket of the node that writes `subnet_file`.
pub fn beside(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("sock")
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            // Nobody is left to be told.
            fs::remove_file(&self.path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_ask_and_the_last_node_has_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("run/subnet.env"));
        assert!(path.ends_with("run/subnet.sock"));
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (second, file) = listen(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "the first has not taken the second's away");
        drop((second, file));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_socket_of_a_killed_node_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let (listener, file) = listen(&path).unwrap();
        std::mem::forget(file);
        drop(listener);
        assert!(UnixStream::connect(&path).is_err());
        let _listening = listen(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_listened_on_is_named() {
        let long = Path::new("/tmp").join("x".repeat(200)).join("s.sock");
        let error = listen(&long).unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on /tmp/xxx"), "{error}");
        fs::remove_dir(long.parent().unwrap()).unwrap();
    }
}
