//! The files of addresses in use, as they are.

use std::{
    fs::{self, File},
    io::ErrorKind,
    net::IpAddr,
    path::Path,
    time::SystemTime,
};

use super::store::{StoreError, failed};

/// Who has an address.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Owner {
    /// The container, as the runtime names it.
    pub container_id: String,
    /// The interface inside of the container; empty in files of old versions.
    pub interface: String,
}

/// An address in use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The address.
    pub address: IpAddr,
    /// Who has it, if that can be read.
    pub owner: Option<Owner>,
    /// Since when.
    pub since: Option<SystemTime>,
    /// It can be read, and names nobody.
    pub(super) names_nobody: bool,
    pub(super) is_empty: bool,
}

impl Owner {
    /// What a file says.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?.trim();
        let (container_id, interface) = text.split_once("\r\n").unwrap_or((text, ""));
        let plain = |text: &str| !text.contains(|it: char| it == '/' || it.is_control());
        let valid = !container_id.is_empty() && plain(container_id) && plain(interface);
        valid.then(|| Self {
            container_id: container_id.to_owned(),
            interface: interface.to_owned(),
        })
    }

    /// What its file says.
    pub(super) fn text(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.interface)
    }

    /// As old versions wrote it.
    pub(super) fn without_interface(&self) -> Self {
        Self { container_id: self.container_id.clone(), interface: String::new() }
    }
}

/// All addresses in use of the network that has this folder. Nothing is made or removed: it is only waited for who writes.
///
/// # Errors
///
/// When the folder cannot be read.
pub fn entries_in(folder: &Path) -> Result<Vec<Entry>, StoreError> {
    let path = folder.join("lock");
    let _lock = match File::open(&path) {
        // Nobody ever wrote.
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        file => {
            let file = file.map_err(failed("open", &path))?;
            file.lock_shared().map_err(failed("lock", &path))?;
            Some(file)
        }
    };
    read_entries(folder)
}

/// The same for who has the lock.
pub(super) fn read_entries(folder: &Path) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    for file in fs::read_dir(folder).map_err(failed("list", folder))? {
        let file = file.map_err(failed("list", folder))?;
        let name = file.file_name();
        let Some(name) = name.to_str() else { continue };
        let address = name.parse::<IpAddr>();
        let Some(address) = address.ok().filter(|address| address.to_string() == name) else {
            continue;
        };
        let is_file = file.file_type().is_ok_and(|kind| kind.is_file());
        let text = if is_file { fs::read(file.path()).ok() } else { None };
        let is_empty = text.as_ref().is_some_and(Vec::is_empty);
        let owner = text.as_ref().and_then(|text| Owner::parse(text));
        let since = file.metadata().and_then(|metadata| metadata.modified()).ok();
        let names_nobody = text.is_some() && owner.is_none();
        entries.push(Entry { address, owner, since, names_nobody, is_empty });
    }
    entries.sort_by_key(|entry| entry.address);
    Ok(entries)
}
