use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::protocol::{Code, Error};

/// What the delegate of each container of a network was told: a file for each, named after it.
#[derive(Debug)]
pub(super) struct Records<'a> {
    folder: &'a Path,
    network: &'a str,
}

impl<'a> Records<'a> {
    pub(super) fn new(folder: &'a Path, network: &'a str) -> Self {
        Self { folder, network }
    }

    /// Keeps a record, in one step: a plugin that is killed leaves the old one or the new one.
    ///
    /// It is not flushed to the disk, since no container outlives the machine's restart.
    pub(super) fn write(&self, id: &str, delegated: &Map<String, Value>) -> Result<(), Error> {
        let path = self.path(id);
        let unfinished = self.unfinished(id);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = match options.open(&unfinished) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder)?;
                    options.open(&unfinished)?
                }
                file => file?,
            };
            file.write_all(serde_json::to_string(delegated)?.as_bytes())?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            failed("write", &path, &error)
        })
    }

    /// The record of a container; `None` if there is none.
    pub(super) fn read(&self, id: &str) -> Result<Option<Map<String, Value>>, Error> {
        let path = self.path(id);
        let text = match fs::read(&path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) =>
            {
                return Ok(None);
            }
            text => text.map_err(|error| failed("read", &path, &error))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let message = format!("failed to parse netconf in {}: {error}", path.display());
            Error::new(Code::Decoding, message)
        })
    }

    /// Whether a record is of this network. Others may have theirs in the same folder.
    pub(super) fn is_ours(&self, record: &Map<String, Value>) -> bool {
        record.get("name").and_then(Value::as_str) == Some(self.network)
    }

    /// Removes the record of a container, and what a plugin left that was killed before there was one.
    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        remove(&self.unfinished(id))?;
        remove(&self.path(id))
    }

    /// Removes the records whose container is not in `valid`. Other networks may have theirs in the same folder.
    pub(super) fn retain(&self, valid: &HashSet<&str>) -> Result<(), Error> {
        let listing = match fs::read_dir(self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            listing => listing.map_err(|error| failed("list", self.folder, &error))?,
        };
        for file in listing.filter_map(Result::ok) {
            let name = file.file_name();
            let Some(name) = name.to_str() else { continue };
            let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
            let is_gone = match unfinished.and_then(|name| name.split_once(':')) {
                Some((network, id)) => network == self.network && !valid.contains(id),
                None if valid.contains(name) => false,
                None => self.read(name).ok().flatten().is_some_and(|record| self.is_ours(&record)),
            };
            if is_gone {
                remove(&file.path())?;
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// What a record is called until it is complete. No network and no container has a colon in its name.
    fn unfinished(&self, id: &str) -> PathBuf {
        self.folder.join(format!(".{}:{id}.new", self.network))
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        // What has a name that no file can have was never there.
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename) => {
            Err(failed("remove", path, &error))
        }
        _ => Ok(()),
    }
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Code::Io, format!("cannot {verb} {}: {error}", path.display()))
}
