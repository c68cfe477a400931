//! Work on the folder away from the runtime's threads, one writer at a time.

use std::{
    fs::{File, OpenOptions, TryLockError},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    sync::Arc,
    time::Duration,
};

use flannel_core::Backoff;
use tokio::{task::spawn_blocking, time::Instant};

use crate::{
    file::folder::{Folder, failed},
    registry::RegistryError,
};

/// Runs `work` without the lock.
///
/// # Cancel safety
///
/// If dropped, the work still happens.
pub(super) async fn blocking<T: Send + 'static>(
    folder: &Arc<Folder>,
    work: impl FnOnce(&Folder) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let folder = Arc::clone(folder);
    join(folder.clone(), move || work(&folder)).await?
}

/// Runs `work` while nobody else writes or lists.
pub(super) async fn exclusive<T: Send + 'static>(
    folder: &Arc<Folder>,
    operation: &str,
    work: impl FnOnce(&Folder) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    locked(folder, operation, File::try_lock, work).await
}

/// Runs `work` while nobody writes.
pub(super) async fn shared<T: Send + 'static>(
    folder: &Arc<Folder>,
    operation: &str,
    work: impl FnOnce(&Folder) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    locked(folder, operation, File::try_lock_shared, work).await
}

/// The lock is tried and not waited for: a thread that waits cannot be called back, and a process that was stopped while it
/// holds the lock would collect them.
async fn locked<T, W>(
    folder: &Arc<Folder>,
    operation: &str,
    lock: fn(&File) -> Result<(), TryLockError>,
    mut work: W,
) -> Result<T, RegistryError>
where
    T: Send + 'static,
    W: FnOnce(&Folder) -> Result<T, RegistryError> + Send + 'static,
{
    let deadline = Instant::now() + LONGEST_WAIT;
    let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(20));
    loop {
        let own = Arc::clone(folder);
        let attempt = move || match try_lock(&own, lock)? {
            Some(_held) => Ok(Ok(work(&own)?)),
            None => Ok(Err(work)),
        };
        match join(Arc::clone(folder), attempt).await?? {
            Ok(done) => return Ok(done),
            Err(later) => work = later,
        }
        if Instant::now() >= deadline {
            return Err(RegistryError::Unavailable {
                operation: operation.into(),
                source: Busy { path: folder.lock_path().display().to_string() }.into(),
            });
        }
        // Each hasher of this kind has keys of its own, which is all the randomness that is needed.
        let random = RandomState::new().build_hasher().finish();
        tokio::time::sleep(backoff.after_failure(random)).await;
    }
}

/// The lock file, locked until it is dropped or the process dies; `None` if another process has it.
fn try_lock(
    folder: &Folder,
    lock: fn(&File) -> Result<(), TryLockError>,
) -> Result<Option<File>, RegistryError> {
    let path = folder.lock_path();
    let attempt = || -> io::Result<Option<File>> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        match lock(&file) {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    };
    attempt().map_err(failed("lock", &path))
}

async fn join<T: Send + 'static>(
    folder: Arc<Folder>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RegistryError> {
    match spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(RegistryError::Unavailable {
            operation: format!("work in {}", folder.root().display()),
            source: error.into(),
        }),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("another process holds {path}; fuser tells which")]
struct Busy {
    path: String,
}

/// A write takes milliseconds; after this many seconds somebody has stopped while it held the lock.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
