//! What is known about a folder of addresses without reading its files: who has which addresses, and which are taken.
//!
//! * `owners/<container>:<interface>` is a symbolic link to the addresses of that owner, separated by commas.
//! * `taken.4` and `taken.6-<upper 96 bits>` have a bit for each address. They are sparse: what was never taken occupies nothing.
//! * `partial` is there if there are owners without a link, because their names or addresses are too long for one.
//! * `kept.4` and so on have a bit for each address that a pod gets back: see [`kept`](super::kept).
//! * `state` has the boot ID, and the time of modification that we gave the folder of addresses when the index was last true.
//!
//! That time is what makes it safe: any file that anybody adds or removes gives the folder another one, and one that we choose, in
//! nanoseconds, is not one that the kernel's clock gives. So another program's change, or one of ours that was interrupted, is seen
//! at the next start, and the index is made anew.

use std::{
    collections::BTreeMap,
    fs::{self, File, FileTimes, OpenOptions},
    io::{self, ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    entries::Owner,
    store::{StoreError, failed},
};

#[derive(Debug)]
pub(super) struct Index {
    folder: PathBuf,
}

/// When the index was last true.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct State {
    pub(super) boot_id: String,
    /// `None` while it is being made.
    pub(super) stamp: Option<SystemTime>,
}

impl Index {
    pub(super) fn of(data_dir: &Path, network: &str) -> Self {
        Self { folder: data_dir.join(".flannel-cni").join(network) }
    }

    /// Whether nothing in `addresses`, the folder of addresses, was changed since the index was recorded in this boot.
    pub(super) fn is_true(&self, addresses: &Path, boot_id: &str) -> bool {
        let Some(State { boot_id: recorded, stamp: Some(stamp) }) = self.state() else {
            return false;
        };
        let modified = fs::metadata(addresses).and_then(|metadata| metadata.modified());
        recorded == boot_id && modified.is_ok_and(|modified| modified == stamp)
    }

    pub(super) fn state(&self) -> Option<State> {
        let text = fs::read_to_string(self.folder.join("state")).ok()?;
        let mut words = text.split_whitespace();
        let boot_id = words.next()?.to_owned();
        let number = |text: &str| text.parse::<u64>().ok();
        let stamp = words.next().and_then(|text| text.split_once('.')).and_then(|(secs, nanos)| {
            let nanos =
                u32::try_from(number(nanos)?).ok().filter(|nanos| *nanos < 1_000_000_000)?;
            UNIX_EPOCH.checked_add(Duration::new(number(secs)?, nanos))
        });
        Some(State { boot_id, stamp })
    }

    /// Says that the index is of this boot and not true yet.
    pub(super) fn begin(&self, boot_id: &str) -> Result<(), StoreError> {
        let owners = self.folder.join("owners");
        fs::create_dir_all(&owners).map_err(failed("make", &owners))?;
        self.write_state(&format!("{boot_id} -\n"))
    }

    /// Says that the index is true as of now.
    pub(super) fn record(&self, addresses: &Path, boot_id: &str) -> Result<(), StoreError> {
        let stamp = || -> io::Result<SystemTime> {
            let folder = File::open(addresses)?;
            folder.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
            // What the file system made of it.
            folder.metadata()?.modified()
        };
        let stamp = stamp().map_err(failed("set the time of", addresses))?;
        let since = stamp.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Where times are whole seconds, a later change may have the same.
        match since.subsec_nanos() {
            0 => self.write_state(&format!("{boot_id} -\n")),
            nanos => self.write_state(&format!("{boot_id} {}.{nanos}\n", since.as_secs())),
        }
    }

    pub(super) fn addresses(&self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let path = self.link(owner);
        match fs::read_link(&path) {
            Ok(target) => Ok(split_addresses(&target)),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Whether there are owners that only their files know.
    pub(super) fn is_partial(&self) -> bool {
        self.partial().exists()
    }

    /// All owners with their addresses.
    pub(super) fn owners(&self) -> Result<Vec<(Owner, Vec<IpAddr>)>, StoreError> {
        let folder = self.folder.join("owners");
        let listing = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listing => listing.map_err(failed("list", &folder))?,
        };
        let mut owners = Vec::new();
        for link in listing {
            let link = link.map_err(failed("list", &folder))?;
            let name = link.file_name();
            let parts = name.to_str().and_then(|name| name.split_once(':'));
            if let (Some((id, interface)), Ok(target)) = (parts, fs::read_link(link.path())) {
                let (container_id, interface) = (id.to_owned(), interface.to_owned());
                owners.push((Owner { container_id, interface }, split_addresses(&target)));
            }
        }
        Ok(owners)
    }

    pub(super) fn add(&self, owner: &Owner, address: IpAddr) -> Result<(), StoreError> {
        let mut addresses = self.addresses(owner)?;
        let path = self.link(owner);
        if !addresses.is_empty() {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        // It may be one without a link: half of its addresses in one would be worse than none.
        if !addresses.is_empty() || !self.is_partial() {
            addresses.push(address);
            self.write_link(owner, &addresses)?;
        }
        self.mark_taken(address)
    }

    pub(super) fn remove(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), StoreError> {
        addresses.iter().try_for_each(|address| self.mark_free(*address))?;
        let path = self.link(owner);
        match fs::remove_file(&path) {
            Err(error) if !is_absent(&error) => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes the index say this and nothing else.
    pub(super) fn replace(
        &self,
        owned: &BTreeMap<Owner, Vec<IpAddr>>,
        taken: &[IpAddr],
    ) -> Result<(), StoreError> {
        let mut missing: BTreeMap<&Owner, &Vec<IpAddr>> = owned.iter().collect();
        for (owner, addresses) in self.owners()? {
            if missing.get(&owner) == Some(&&addresses) {
                missing.remove(&owner);
            } else {
                let path = self.link(&owner);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        let partial = self.partial();
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed("remove", &partial)(error));
            }
            _ => {}
        }
        missing.into_iter().try_for_each(|(owner, addresses)| self.write_link(owner, addresses))?;
        for file in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let file = file.map_err(failed("list", &self.folder))?;
            if file.file_name().as_bytes().starts_with(b"taken.") {
                fs::remove_file(file.path()).map_err(failed("remove", &file.path()))?;
            }
        }
        let mut blocks: BTreeMap<(PathBuf, u64), Vec<u8>> = BTreeMap::new();
        for address in taken {
            let (path, bit) = self.bit(TAKEN, *address);
            let block =
                blocks.entry((path, bit / BLOCK_BITS)).or_insert_with(|| vec![0; BLOCK_BYTES]);
            block[(bit % BLOCK_BITS / 8) as usize] |= 1 << (bit % 8);
        }
        for ((path, block), bytes) in blocks {
            let write = || open(&path)?.write_all_at(&bytes, block * BLOCK_BYTES as u64);
            write().map_err(failed("write", &path))?;
        }
        Ok(())
    }

    pub(super) fn mark_taken(&self, address: IpAddr) -> Result<(), StoreError> {
        self.mark(TAKEN, address, true)
    }

    pub(super) fn mark_free(&self, address: IpAddr) -> Result<(), StoreError> {
        self.mark(TAKEN, address, false)
    }

    pub(super) fn mark_kept(&self, address: IpAddr, kept: bool) -> Result<(), StoreError> {
        self.mark(KEPT, address, kept)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The first address from `from` to `to` that is not taken, nor kept if `spare_kept` is set.
    pub(super) fn next_free(
        &self,
        from: IpAddr,
        to: IpAddr,
        spare_kept: bool,
    ) -> Result<Option<IpAddr>, StoreError> {
        let kinds = if spare_kept { &[TAKEN, KEPT][..] } else { &[TAKEN] };
        let (mut at, end) = (number(from), number(to));
        while at <= end {
            let start = address(from, at);
            let (_, bit) = self.bit(TAKEN, start);
            let last_of_file = at | u128::from(u32::MAX);
            let file_end = bit + u64::try_from(end.min(last_of_file) - at).expect("32 bits");
            let mut files = Vec::new();
            for kind in kinds {
                let (path, _) = self.bit(kind, start);
                match File::open(&path) {
                    Ok(file) => files.push(file),
                    // No bit of it is set.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("open", &path)(error)),
                }
            }
            let free = first_clear(&files, bit, file_end);
            let free = free.map_err(failed("read the bits in", &self.folder))?;
            if let Some(free) = free {
                return Ok(Some(address(from, at - u128::from(bit) + u128::from(free))));
            }
            let Some(after) = last_of_file.checked_add(1) else { break };
            at = after;
        }
        Ok(None)
    }

    fn mark(&self, kind: &str, address: IpAddr, set: bool) -> Result<(), StoreError> {
        let (path, bit) = self.bit(kind, address);
        let write = || {
            let file = open(&path)?;
            let mut byte = [0];
            // Behind the end no bit is set.
            let _ = file.read_at(&mut byte, bit / 8)?;
            let mask = 1 << (bit % 8);
            let new = if set { byte[0] | mask } else { byte[0] & !mask };
            if new == byte[0] { Ok(()) } else { file.write_all_at(&[new], bit / 8) }
        };
        write().map_err(failed("write", &path))
    }

    /// The file that has the bit of an address, and which it is.
    fn bit(&self, kind: &str, address: IpAddr) -> (PathBuf, u64) {
        let number = number(address);
        let name = match address {
            IpAddr::V4(_) => format!("{kind}.4"),
            IpAddr::V6(_) => format!("{kind}.6-{:024x}", number >> 32),
        };
        (self.folder.join(name), (number & u128::from(u32::MAX)) as u64)
    }

    /// In place, so that nothing has to be renamed: less than a block is written as a whole.
    fn write_state(&self, text: &str) -> Result<(), StoreError> {
        let path = self.folder.join("state");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(false).open(&path)?;
            file.write_all(format!("{text:<80}").as_bytes())
        };
        write().map_err(failed("write", &path))
    }

    fn write_link(&self, owner: &Owner, addresses: &[IpAddr]) -> Result<(), StoreError> {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let path = self.link(owner);
        match symlink(addresses.join(","), &path) {
            Err(error) if error.kind() == ErrorKind::InvalidFilename => {
                let partial = self.partial();
                File::create(&partial).map(drop).map_err(failed("make", &partial))
            }
            made => made.map_err(failed("make", &path)),
        }
    }

    fn partial(&self) -> PathBuf {
        self.folder.join("partial")
    }

    /// No container and no interface has a colon in its name.
    fn link(&self, owner: &Owner) -> PathBuf {
        self.folder.join("owners").join(format!("{}:{}", owner.container_id, owner.interface))
    }
}

/// Whether there is no such link, be it that there cannot be one of such a name.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidFilename)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The first bit from `from` to `to` that is set in no file.
fn first_clear(files: &[File], mut from: u64, to: u64) -> io::Result<Option<u64>> {
    let (mut block, mut other) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    while from <= to {
        let start = from / 8;
        let mut read = 0;
        block.fill(0);
        for file in files {
            let count = file.read_at(&mut other, start)?;
            block.iter_mut().zip(&other[..count]).for_each(|(byte, other)| *byte |= other);
            read = read.max(count);
        }
        let bits = (read as u64) * 8;
        let set = |bit: u64| block[((bit / 8) - start) as usize] & (1 << (bit % 8)) != 0;
        let end = start * 8 + bits;
        while from < end && from <= to {
            if from.is_multiple_of(8) && block[(from / 8 - start) as usize] == u8::MAX {
                from += 8;
            } else if set(from) {
                from += 1;
            } else {
                return Ok(Some(from));
            }
        }
        // Behind the end of all files.
        if bits == 0 {
            return Ok((from <= to).then_some(from));
        }
    }
    Ok(None)
}

pub(super) fn split_addresses(target: &Path) -> Vec<IpAddr> {
    let text = target.to_str().unwrap_or_default();
    text.split(',').filter_map(|address| address.parse().ok()).collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address with this number, of the family of `like`.
fn address(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// What the files of bits are called.
const TAKEN: &str = "taken";
const KEPT: &str = "kept";
/// As many bits as are read at once: those of 32,768 addresses.
const BLOCK_BYTES: usize = 4096;
const BLOCK_BITS: u64 = BLOCK_BYTES as u64 * 8;
