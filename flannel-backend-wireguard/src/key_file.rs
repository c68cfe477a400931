//! The private key in its file.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use flannel_core::BackendError;
use flannel_netlink::wireguard::SecretKey;
use rustix::rand::{GetRandomFlags, getrandom};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::KIND;

/// The key in the file at `path`. A file that does not exist is created with a new key, readable by its owner only and in one step: of
/// two processes that create it at once, both get the same key.
pub(crate) fn load(path: &Path) -> Result<SecretKey, BackendError> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let created = create(path).map_err(|error| failed(path, "write", error))?;
    if created {
        info!(file = %path.display(), "private key created");
    }
    let vanished = || failed(path, "read", io::ErrorKind::NotFound.into());
    read(path)?.ok_or_else(vanished)
}

/// Removes the file.
pub(crate) fn remove(path: &Path) -> Result<(), BackendError> {
    match fs::remove_file(path) {
        Ok(()) => info!(file = %path.display(), "private key removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(path, "remove", error)),
    }
    Ok(())
}

fn failed(path: &Path, operation: &str, source: io::Error) -> BackendError {
    let operation = format!("{operation} the private key {}", path.display());
    BackendError::Kernel { operation, source: source.into() }
}

fn read(path: &Path) -> Result<Option<SecretKey>, BackendError> {
    let text = match fs::read(path) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, "read", error)),
    };
    let mode =
        fs::metadata(path).map_err(|error| failed(path, "read", error))?.permissions().mode();
    if mode & OTHERS != 0 {
        warn!(file = %path.display(), "others can read the private key: chmod 600");
    }
    let key = str::from_utf8(&text).ok().and_then(|text| text.trim_ascii().parse().ok());
    key.map(|key: SecretKey| Some(key.clamped())).ok_or_else(|| BackendError::Unsupported {
        backend: KIND.into(),
        reason: format!(
            "{} does not hold a private key, 32 bytes in base64: write one there (wg genkey), or remove the file to get a new one",
            path.display()
        ),
    })
}

/// Creates the file; false if another process has.
fn create(path: &Path) -> io::Result<bool> {
    let folder =
        path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut random = Zeroizing::new([0; 32]);
    if getrandom(&mut random[..], GetRandomFlags::empty())? != random.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // Its mode is 0600, and it is removed if it is not finished.
    let mut file = tempfile::Builder::new().prefix(".wgkey").tempfile_in(folder)?;
    // As flannel's, without a newline.
    file.write_all(SecretKey::new(*random).clamped().reveal().as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error.error),
    }
}

/// The bits of a mode that let others than the owner do anything.
const OTHERS: u32 = 0o077;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_key_is_created_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/wgkey");
        let made: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| load(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(made.iter().all(|key| *key == made[0]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, *made[0].reveal(), "as flannel writes it");
        assert_eq!(text.len(), 44);
        assert_eq!(load(&path).unwrap(), made[0]);
    }

    #[test]
    fn flannels_key_is_read_and_an_invalid_one_is_reported_without_its_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wgkey");
        let text = "eFjkCpyyQ9wBLpA8dDg6dRzUvTTPnSpfnSBRTzzJ2Uo=";
        fs::write(&path, format!("{text}\n")).unwrap();
        assert_eq!(*load(&path).unwrap().reveal(), text);
        fs::write(&path, "eFjkCpyy").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("wgkey does not hold a private key"), "{error}");
        assert!(!error.contains("eFjkCpyy"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "eFjkCpyy", "it is not replaced");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = load(Path::new("/proc/no/wgkey")).unwrap_err();
        assert!(error.to_string().contains("write the private key /proc/no/wgkey"), "{error}");
    }
}
