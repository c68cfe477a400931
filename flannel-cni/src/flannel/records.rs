use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::protocol::{Code, Error};

/// What the delegate of each container was told: a file for each, named after it.
#[derive(Debug)]
pub(super) struct Records<'a> {
    folder: &'a Path,
}

impl<'a> Records<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    /// Keeps a record, in one step: a plugin that is killed leaves the old one or the new one.
    ///
    /// It is not flushed to the disk, since no container outlives the machine's restart.
    pub(super) fn write(&self, id: &str, delegated: &Map<String, Value>) -> Result<(), Error> {
        let path = self.path(id);
        let unfinished = self.folder.join(format!(".{id}.new"));
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
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| failed("read", &path, &error))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let message = format!("failed to parse netconf in {}: {error}", path.display());
            Error::new(Code::Decoding, message)
        })
    }

    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the records of `network` whose container is not in `valid`. Other networks may have theirs in the same folder.
    pub(super) fn retain(&self, network: &str, valid: &HashSet<&str>) -> Result<(), Error> {
        let listing = match fs::read_dir(self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            listing => listing.map_err(|error| failed("list", self.folder, &error))?,
        };
        for file in listing.filter_map(Result::ok) {
            let name = file.file_name();
            let Some(id) = name.to_str().filter(|id| !valid.contains(id)) else { continue };
            let of_network = |record: &Map<String, Value>| {
                record.get("name").and_then(Value::as_str) == Some(network)
            };
            if self.read(id).ok().flatten().as_ref().is_some_and(of_network) {
                self.remove(id)?;
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Code::Io, format!("cannot {verb} {}: {error}", path.display()))
}
