//! The folder of one network's addresses, as containernetworking's `host-local` keeps it.
//!
//! A file for each address in use, named after it, holds `<container>\r\n<interface>`; older versions wrote the container alone.
//! `last_reserved_ip.<set>` is where the search goes on, `lock` is locked by whoever reads or writes. An address file without
//! content is what a plugin left that was killed between making and filling it: nobody has that address.
//!
//! Beside the networks' folders, in `.flannel-cni/<network>`, is what spares reading all files: see [`index`](super::index). It
//! is made anew whenever it may not be true.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    RangeSet,
    entries::{Entry, Owner, read_entries},
    index::{Index, State},
};
use crate::protocol::Attachment;

/// The addresses of one network, locked.
///
/// Opening waits for other processes that have it. What was changed counts from [`commit`](Self::commit) on; without it the next
/// one to open reads all files, and finds what is there.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    pub(super) index: Index,
    boot_id: String,
    _lock: File,
}

/// Why addresses could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct StoreError {
    /// What was tried.
    pub operation: &'static str,
    /// With what.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl Store {
    /// Opens the addresses of `network` in `data_dir`, which are made if they are not there. `boot_id` is a text that is another one
    /// after each start of the machine: what was in use before is free.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written.
    pub fn open(data_dir: &Path, network: &str, boot_id: &str) -> Result<Self, StoreError> {
        let folder = data_dir.join(network);
        let lock = lock(&folder)?;
        let index = Index::of(data_dir, network);
        let mut store = Self { folder, index, boot_id: boot_id.to_owned(), _lock: lock };
        if !store.index.is_true(&store.folder, boot_id) {
            store.rebuild()?;
        }
        Ok(store)
    }

    /// The addresses that `owner` has.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    pub fn addresses(&self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let found = self.addresses_exactly(owner)?;
        if !found.is_empty() {
            return Ok(found);
        }
        self.addresses_exactly(&owner.without_interface())
    }

    fn addresses_exactly(&self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let found = self.index.addresses(owner)?;
        if !found.is_empty() || !self.index.is_partial() {
            return Ok(found);
        }
        let entries = self.entries()?.into_iter();
        let of_owner = entries.filter(|entry| entry.owner.as_ref() == Some(owner));
        Ok(of_owner.map(|entry| entry.address).collect())
    }

    /// Gives `address` to `owner`; false if somebody has it. `set` is the number of the set it is from.
    ///
    /// # Errors
    ///
    /// When a file cannot be written. Nothing is given then.
    pub fn reserve(
        &mut self,
        owner: &Owner,
        address: IpAddr,
        set: usize,
    ) -> Result<bool, StoreError> {
        let path = self.folder.join(address.to_string());
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(failed("make", &path)(error)),
        };
        let last = self.last_path(set);
        let done = file.write_all(owner.text().as_bytes()).map_err(failed("write", &path));
        let done = done.and_then(|()| self.index.add(owner, address));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let write = || options.open(&last)?.write_all(address.to_string().as_bytes());
        let done = done.and_then(|()| write().map_err(failed("write", &last)));
        if let Err(error) = done {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(true)
    }

    /// Gives `owner` the next free address of `set`, whose number is `number`: the one behind the last that was given, so that an
    /// address is not used again at once. `None` if there is none.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve).
    pub fn reserve_next(
        &mut self,
        owner: &Owner,
        set: &RangeSet,
        number: usize,
    ) -> Result<Option<IpAddr>, StoreError> {
        while let Some(address) = self.next_free(set, number)? {
            if self.reserve(owner, address, number)? {
                return Ok(Some(address));
            }
            // Something else than a reservation has this name.
            self.index.mark_taken(address)?;
        }
        Ok(None)
    }

    /// The address that [`reserve_next`](Self::reserve_next) would give: one that no pod gets back, if there is one.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    pub fn next_free(&self, set: &RangeSet, number: usize) -> Result<Option<IpAddr>, StoreError> {
        let last = fs::read_to_string(self.last_path(number)).ok();
        let last = last.and_then(|text| text.trim().parse().ok());
        let stretches = set.stretches(last);
        for spare_kept in [true, false] {
            for (from, to) in &stretches {
                if let Some(free) = self.index.next_free(*from, *to, spare_kept)? {
                    return Ok(Some(free));
                }
            }
        }
        Ok(None)
    }

    /// Takes all addresses of `owner` back, and returns them.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed. Another call takes the rest back.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let released = self.release_exactly(owner)?;
        if !released.is_empty() {
            return Ok(released);
        }
        self.release_exactly(&owner.without_interface())
    }

    fn release_exactly(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let addresses = self.addresses_exactly(owner)?;
        for address in &addresses {
            self.remove(*address, owner)?;
        }
        self.index.remove(owner, &addresses)?;
        Ok(addresses)
    }

    /// Takes all addresses back whose attachment is not in `valid`, and those of files in which no owner is named. What cannot be
    /// read stays.
    ///
    /// # Errors
    ///
    /// The first failure, after everything that could be taken back was.
    pub fn retain(&mut self, valid: &[Attachment]) -> Result<(), StoreError> {
        let owner = |it: &Attachment| Owner {
            container_id: it.container_id.trim().to_owned(),
            interface: it.interface.clone(),
        };
        let valid: HashSet<Owner> =
            valid.iter().map(owner).flat_map(|it| [it.without_interface(), it]).collect();
        let mut outcome = Ok(());
        let mut note = |result: Result<(), StoreError>| {
            if let (Ok(()), Err(error)) = (&outcome, result) {
                outcome = Err(error);
            }
        };
        for entry in self.entries()? {
            let path = self.folder.join(entry.address.to_string());
            match &entry.owner {
                Some(owner) if valid.contains(owner) => {}
                Some(owner) => note(self.release_exactly(owner).map(drop)),
                None if entry.names_nobody => {
                    note(fs::remove_file(&path).map_err(failed("remove", &path)));
                    note(self.index.mark_free(entry.address));
                }
                None => {}
            }
        }
        outcome?;
        self.commit()
    }

    /// Whether something has the name of this address, be it in use or not to be used.
    pub(super) fn has_file(&self, address: IpAddr) -> bool {
        self.folder.join(address.to_string()).exists()
    }

    /// All addresses in use with their owners, read from their files.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        read_entries(&self.folder)
    }

    /// Has what was changed count as known to the index.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.index.record(&self.folder, &self.boot_id)
    }

    /// Makes the index from the files, and frees what is from before the machine started, and what nobody has.
    fn rebuild(&mut self) -> Result<(), StoreError> {
        let before = self.index.state();
        // What the index knows of this boot is in use.
        let before = before.filter(|state| state.boot_id != self.boot_id);
        let known: HashMap<IpAddr, Owner> = match &before {
            Some(_) => self.index.owners()?.into_iter().flat_map(addresses_of).collect(),
            None => HashMap::new(),
        };
        let is_old = |entry: &Entry| {
            let State { stamp, .. } = before.as_ref()?;
            // Not what another plugin made since the machine started.
            let old = entry.since? <= (*stamp)?;
            (old && entry.owner.as_ref() == known.get(&entry.address)).then_some(())
        };
        let mut taken = Vec::new();
        let mut owned: BTreeMap<Owner, Vec<IpAddr>> = BTreeMap::new();
        for entry in self.entries()? {
            if entry.is_empty || entry.owner.is_some() && is_old(&entry).is_some() {
                let path = self.folder.join(entry.address.to_string());
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                continue;
            }
            taken.push(entry.address);
            if let Some(owner) = entry.owner {
                owned.entry(owner).or_default().push(entry.address);
            }
        }
        self.index.begin(&self.boot_id)?;
        self.index.replace(&owned, &taken)?;
        self.commit()
    }

    /// Removes the file of an address if `owner` has it.
    fn remove(&self, address: IpAddr, owner: &Owner) -> Result<(), StoreError> {
        let path = self.folder.join(address.to_string());
        match fs::read(&path) {
            Ok(text) if Owner::parse(&text).as_ref() == Some(owner) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read", &path)(error)),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }
}

fn addresses_of((owner, addresses): (Owner, Vec<IpAddr>)) -> impl Iterator<Item = (IpAddr, Owner)> {
    addresses.into_iter().map(move |address| (address, owner.clone()))
}

/// Makes the folder if it is not there, and waits for its lock.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o750).open(&path);
    let opened = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o755).create(folder).map_err(failed("make", folder))?;
            open()
        }
        opened => opened,
    };
    let file = opened.map_err(failed("open", &path))?;
    file.lock().map_err(failed("lock", &path))?;
    Ok(file)
}

pub(super) fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    move |source| StoreError { operation, path: path.to_owned(), source }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "odd_owners_tests.rs"]
mod odd_owners_tests;

#[cfg(test)]
#[path = "store_model_tests.rs"]
mod model_tests;
