//! Which peers commands have been run for: in a file, for the next process.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use flannel_core::Subnet;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    config::Commands,
    plan::{Served, Target},
};

/// What is known of the data path that commands have made.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    /// The commands that were run.
    pub(crate) commands: Commands,
    /// The network and this node, as `PostStartupCommand` was told.
    pub(crate) network: String,
    pub(crate) own: Target,
    pub(crate) served: BTreeMap<Subnet, Served>,
}

/// The file's content.
#[derive(Deserialize, Serialize)]
struct Stored {
    /// The kernel's id of the boot: nothing that was made outlives it.
    boot: String,
    commands: Commands,
    network: String,
    own: Target,
    served: BTreeMap<String, Served>,
}

impl Record {
    /// Reads the file. It is empty if there is none, or if it is from before a reboot.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read?),
        };
        let mut record = Self {
            path: path.to_owned(),
            commands: Commands::default(),
            network: String::new(),
            own: Target::default(),
            served: BTreeMap::new(),
        };
        let Some(text) = text else { return Ok(record) };
        match serde_json::from_str::<Stored>(&text) {
            Err(error) => {
                let path = path.display();
                warn!(%path, %error, "the record of peers is damaged: starting without one");
            }
            Ok(stored) if stored.boot != boot()? => {}
            Ok(stored) => {
                let parsed = |(key, served): (String, Served)| Some((key.parse().ok()?, served));
                record.served = stored.served.into_iter().filter_map(parsed).collect();
                (record.commands, record.own) = (stored.commands, stored.own);
                record.network = stored.network;
            }
        }
        Ok(record)
    }

    /// Writes the file, at once or not at all. Only its owner can read it.
    pub(crate) fn save(&self) -> io::Result<()> {
        let stored = Stored {
            boot: boot()?,
            commands: self.commands.clone(),
            network: self.network.clone(),
            own: self.own.clone(),
            served: self.served.iter().map(|(key, it)| (key.to_string(), it.clone())).collect(),
        };
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        // It need not survive a power failure, because a reboot makes it worthless.
        options.open(&new)?.write_all(&serde_json::to_vec(&stored)?)?;
        fs::rename(&new, &self.path)
    }

    /// Removes the file.
    pub(crate) fn delete(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_only_in_the_same_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("extension.json");
        let mut record = Record::load(&path).unwrap();
        assert!(record.served.is_empty());
        record.commands.subnet_add = Some("add".into());
        let target = Target { data: "\"\n".into(), ..Target::default() };
        record.served.insert("10.1.2.0-24".parse().unwrap(), Served { target, is_sure: true });
        record.save().unwrap();
        let read = Record::load(&path).unwrap();
        assert_eq!((&read.commands, &read.served), (&record.commands, &record.served));

        let text = fs::read_to_string(&path).unwrap();
        let other_boot = text.replace(boot().unwrap().trim(), "another");
        fs::write(&path, other_boot).unwrap();
        assert!(Record::load(&path).unwrap().served.is_empty());
        for damaged in ["", "{", &text[..text.len() / 2], "[]"] {
            fs::write(&path, damaged).unwrap();
            assert!(Record::load(&path).unwrap().served.is_empty());
        }
        record.delete().unwrap();
        record.delete().unwrap();
        assert!(!path.exists());
    }
}
