//! Whether the sandbox is what keeps the node from a file.

use std::{
    error::Error,
    io, iter,
    path::{Path, PathBuf},
};

use flannel_store::RegistryError;
use rustix::fs::{Access, access};

use super::existing;
use crate::FileError;

/// What a node may do with files according to its options, so that a refusal can be explained.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    reads: Vec<PathBuf>,
    writes: Vec<PathBuf>,
}

/// The sandbox is in the way.
#[derive(Debug, thiserror::Error)]
#[error(
    "the sandbox of this process does not allow it, because a folder was replaced since the start: start the node again, or with \
     --sandbox=off"
)]
struct InTheWay(#[source] Box<dyn Error + Send + Sync>);

impl Allowed {
    pub(super) fn new(reads: &[PathBuf], writes: &[PathBuf]) -> Self {
        Self { reads: reads.to_vec(), writes: writes.to_vec() }
    }

    /// The error with its reason, if that is the sandbox: files of the node are refused that their permissions allow.
    fn explain(&self, error: io::Error) -> io::Error {
        match self.is_reason(&error) {
            true => io::Error::new(error.kind(), InTheWay(error.into())),
            false => error,
        }
    }

    /// The same of a file's error.
    pub(crate) fn explain_file(&self, error: FileError) -> FileError {
        FileError { source: self.explain(error.source), ..error }
    }

    /// The same of a store's error.
    pub(crate) fn explain_store(&self, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Denied { operation, source } if self.is_reason(&*source) => {
                RegistryError::Denied { operation, source: InTheWay(source).into() }
            }
            RegistryError::Unavailable { operation, source } if self.is_reason(&*source) => {
                RegistryError::Unavailable { operation, source: InTheWay(source).into() }
            }
            error => error,
        }
    }

    fn is_reason(&self, error: &(dyn Error + 'static)) -> bool {
        let mut causes = iter::successors(Some(error), |&error| error.source());
        let is_refusal = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if !causes.any(|error| error.downcast_ref().is_some_and(is_refusal)) {
            return false;
        }
        // Landlock has no say in this call.
        let may = |path: &Path, access_to| access(path, access_to).is_ok();
        let has_any = !self.reads.is_empty() || !self.writes.is_empty();
        has_any
            && self.reads.iter().all(|path| !path.exists() || may(path, Access::READ_OK))
            && self.writes.iter().all(|path| may(&existing(path), Access::WRITE_OK))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, slice, thread};

    use super::*;
    use crate::{error::chain, sandbox::files};

    #[test]
    fn who_is_refused_by_the_sandbox_is_told_so_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        fs::create_dir(&path).unwrap();
        let [refused, missing] = thread::scope(|scope| {
            let restricted = || {
                files::restrict(&[], slice::from_ref(&path));
                fs::remove_dir_all(&path).unwrap_err();
                [fs::write(folder.path().join("x"), "x"), fs::write(path.join("no/x"), "x")]
                    .map(Result::unwrap_err)
            };
            scope.spawn(restricted).join().unwrap()
        });
        let allowed = Allowed::new(&[], &[path]);
        assert_eq!(allowed.explain(missing).kind(), io::ErrorKind::NotFound);
        let source = Box::new(refused);
        let error = RegistryError::Unavailable { operation: "write the lease".into(), source };
        let said = chain(&allowed.explain_store(error));
        assert!(said.contains("sandbox") && said.contains("start the node again"), "{said}");
        assert!(said.ends_with("Permission denied (os error 13)"), "{said}");
        let source = Box::new(io::Error::from(io::ErrorKind::PermissionDenied));
        let error = RegistryError::Unavailable { operation: "write the lease".into(), source };
        let said = chain(&Allowed::default().explain_store(error));
        assert!(!said.contains("sandbox"), "without one: {said}");
    }
}
