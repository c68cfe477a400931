//! The local socket of a node, for operators.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixListener, time::sleep};
use tracing::{info, warn};

use crate::{
    atomic_file,
    error::{FileError, chain},
    handle::DaemonHandle,
    health_server::{self, Listener},
    sandbox::Allowed,
};

/// A socket that is removed with this value, unless another process has put its own there by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

/// Serves operators at `path` until it is dropped. A socket that was removed, or could not be made, is made again.
pub(crate) async fn serve(path: PathBuf, daemon: DaemonHandle, allowed: Allowed) {
    let mut last = String::new();
    loop {
        match listen(&path) {
            Ok((listener, file)) => {
                last.clear();
                let serve = health_server::serve(Listener::Operators(listener), daemon.clone());
                tokio::select! {
                    () = serve => {}
                    () = file.removed() => info!(socket = %path.display(), "the socket was removed, making it again"),
                }
            }
            Err(error) => {
                let text = chain(&allowed.explain_file(error));
                if text != last {
                    warn!("flannel-node status will not work, retrying: {text}");
                    last = text;
                }
                sleep(LOOK).await;
            }
        }
    }
}

/// Listens at `path`, for the owner of this process only.
///
/// The socket of a node that was killed is replaced. So is that of one that runs, which is said: two nodes of one subnet file
/// are a mistake, except while one takes over from the other.
fn listen(path: &Path) -> Result<(UnixListener, SocketFile), FileError> {
    let make = || {
        let folder = atomic_file::make_folder(path)?;
        if UnixStream::connect(path).is_ok() {
            warn!(socket = %path.display(), "another node runs with this subnet file; its socket is taken over");
        }
        // A folder that nobody else may enter, so that nobody connects before the permissions are right.
        let hidden = tempfile::Builder::new().prefix(".s").rand_bytes(4).tempdir_in(folder)?;
        let made = hidden.path().join("s");
        let listener = UnixListener::bind(&made)?;
        fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
        let inode = fs::symlink_metadata(&made)?.ino();
        fs::rename(&made, path)?;
        Ok((listener, SocketFile { path: path.to_owned(), inode }))
    };
    make().map_err(|source| FileError { operation: "listen on", path: path.to_owned(), source })
}

/// The socket of the node that writes `subnet_file`.
pub fn beside(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("sock")
}

impl SocketFile {
    /// Waits until nothing is at the path any more. Another process's socket is something.
    async fn removed(&self) {
        while fs::symlink_metadata(&self.path).is_ok() {
            sleep(LOOK).await;
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            // Nobody is left to be told.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// How often it is looked whether the socket is there.
const LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_comes_back_after_its_folder_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("run/subnet.env"));
        let daemon = DaemonHandle::new(&folder.path().join("run/subnet.env"), false);
        let server = tokio::spawn(serve(path.clone(), daemon, Allowed::default()));
        let answers = async || {
            let answered = async || {
                while UnixStream::connect(&path).is_err() {
                    sleep(Duration::from_millis(20)).await
                }
            };
            tokio::time::timeout(Duration::from_secs(30), answered()).await.expect("it listens")
        };
        answers().await;
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        answers().await;
        server.abort();
    }

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
