//! Addresses that pods get back by their names.
//!
//! What is known of a network is beside its index, in `kept`:
//!
//! * `<address>` is a symbolic link to `<namespace>/<pod>/<interface>`, which is to have that address.
//! * `<digest of these three>` is one to the addresses, separated by commas.
//! * `kept.4` and `kept.6-…` in the index have a bit for each such address: others get it when there is no other.
//!
//! What is kept for pods that are away is bounded: a look at all of it, now and then, leaves those that were here last. When that was
//! is the time of an address's link, which is renewed when the pod comes back, and by each look while it is here.
//!
//! It outlives restarts of the machine, and everything in it may be missing: then a pod gets another address. An address counts for a
//! pod if both links say so; the bit comes last and goes first, so that none is kept for nobody.

use std::{
    fs,
    io::{self, ErrorKind},
    net::IpAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::{
    RangeSet,
    entries::Owner,
    index::{Index, split_addresses},
    store::{Store, StoreError, failed},
};

/// A pod, as Kubernetes names it, with one of its interfaces.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub name: String,
    /// The interface inside of it.
    pub interface: String,
}

/// Which pods get their addresses back: patterns of `namespace/pod`, in which `*` is any text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Patterns(Vec<String>);

impl Patterns {
    /// # Errors
    ///
    /// A sentence that says what cannot be.
    pub(super) fn new(patterns: Vec<String>) -> Result<Self, String> {
        match patterns.iter().find(|pattern| pattern.split('/').count() != 2) {
            Some(wrong) => Err(format!("keepAddressesFor has {wrong:?}, not NAMESPACE/POD")),
            None => Ok(Self(patterns)),
        }
    }

    pub(super) fn match_pod(&self, pod: &PodName) -> bool {
        self.0
            .iter()
            .filter_map(|pattern| pattern.split_once('/'))
            .any(|(namespace, name)| matches(namespace, &pod.namespace) && matches(name, &pod.name))
    }
}

/// Whether `text` is `pattern`, of which each `*` is any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

impl Store {
    /// Gives `owner` the address of `set`, whose number is `number`, that `pod` had before. `None` if it had none, or somebody else has
    /// it now.
    ///
    /// # Errors
    ///
    /// As [`reserve`](Self::reserve).
    pub fn reserve_again(
        &mut self,
        owner: &Owner,
        pod: &PodName,
        set: &RangeSet,
        number: usize,
    ) -> Result<Option<IpAddr>, StoreError> {
        let of_set = |address: &IpAddr| {
            set.range_of(*address).is_some_and(|range| range.gateway != *address)
        };
        let kept = Kept::new(&self.index).addresses(pod);
        match kept.into_iter().find(of_set) {
            Some(address) => Ok(self.reserve(owner, address, number)?.then_some(address)),
            None => Ok(None),
        }
    }

    /// Has `pod` get these addresses back when it comes again, or nobody if there is none.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn keep(&mut self, pod: Option<&PodName>, addresses: &[IpAddr]) -> Result<(), StoreError> {
        let kept = Kept::new(&self.index);
        let Some(pod) = pod else {
            return addresses.iter().try_for_each(|address| kept.forget(*address));
        };
        if !kept.keep(pod, addresses)? || !looks_at_all(&pod.text()) {
            return Ok(());
        }
        kept.bound(MOST_AWAY, |address| self.has_file(address))
    }

    /// All addresses that pods are to get back, with the pods.
    ///
    /// # Errors
    ///
    /// When they cannot be listed.
    pub fn kept(&self) -> Result<Vec<(IpAddr, PodName)>, StoreError> {
        all(&self.index.folder().join("kept"))
    }
}

/// The addresses of `network` in `data_dir` that pods are to get back, with the pods. Nothing is locked or written.
///
/// # Errors
///
/// When they cannot be listed.
pub fn kept_in(data_dir: &Path, network: &str) -> Result<Vec<(IpAddr, PodName)>, StoreError> {
    all(&Index::of(data_dir, network).folder().join("kept"))
}

fn all(folder: &Path) -> Result<Vec<(IpAddr, PodName)>, StoreError> {
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed("list", folder))?,
    };
    let mut all = Vec::new();
    for link in listing {
        let link = link.map_err(failed("list", folder))?;
        let address = link.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok());
        let target = fs::read_link(link.path());
        let pod = target.ok().and_then(|target| PodName::parse(target.to_str()?));
        all.extend(address.zip(pod));
    }
    all.sort_by_key(|(address, _)| *address);
    Ok(all)
}

/// The addresses of one network that pods get back.
#[derive(Debug)]
struct Kept<'a> {
    folder: PathBuf,
    index: &'a Index,
}

impl<'a> Kept<'a> {
    fn new(index: &'a Index) -> Self {
        Self { folder: index.folder().join("kept"), index }
    }

    /// The addresses that `pod` gets back.
    fn addresses(&self, pod: &PodName) -> Vec<IpAddr> {
        let text = pod.text();
        let mut addresses = self.noted(&text);
        addresses.retain(|address| self.text_of(*address).as_ref() == Some(&text));
        addresses
    }

    /// Has `pod`, which is here, get these addresses back, and no others; false if that was so already.
    fn keep(&self, pod: &PodName, addresses: &[IpAddr]) -> Result<bool, StoreError> {
        let before = self.addresses(pod);
        if before == addresses {
            return addresses.iter().try_for_each(|address| self.renew(*address)).map(|()| false);
        }
        before.iter().try_for_each(|address| self.forget(*address))?;
        addresses.iter().try_for_each(|address| self.forget(*address))?;
        let make = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            for address in addresses {
                symlink(pod.text(), self.folder.join(address.to_string()))?;
            }
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let path = self.folder.join(digest(&pod.text()));
            remove(&path)?;
            symlink(list.join(","), path)
        };
        make().map_err(failed("write", &self.folder))?;
        addresses.iter().try_for_each(|address| self.index.mark_kept(*address, true))?;
        Ok(true)
    }

    /// Forgets the pods that are away for longest, until so many addresses are left to those that are.
    fn bound(&self, most: usize, in_use: impl Fn(IpAddr) -> bool) -> Result<(), StoreError> {
        let mut away: Vec<(SystemTime, IpAddr)> = Vec::new();
        for (address, _) in all(&self.folder)? {
            if in_use(address) {
                self.renew(address)?;
                continue;
            }
            let here = fs::symlink_metadata(self.folder.join(address.to_string()));
            let here = here.and_then(|metadata| metadata.modified());
            away.extend(here.ok().map(|here| (here, address)));
        }
        away.sort();
        away.truncate(away.len().saturating_sub(most));
        away.iter().try_for_each(|(_, address)| self.forget(*address))
    }

    /// Notes that the pod with this address is here.
    fn renew(&self, address: IpAddr) -> Result<(), StoreError> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let path = self.folder.join(address.to_string());
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("write", &path)(error.into()))
    }

    /// Has nobody get this address back. The pod that was to have it gets none of its others either: where one family has more
    /// addresses than the other, they would be kept for ever.
    fn forget(&self, address: IpAddr) -> Result<(), StoreError> {
        let Some(text) = self.text_of(address) else { return Ok(()) };
        let mut addresses = self.noted(&text);
        addresses.retain(|other| *other != address && self.text_of(*other).as_ref() == Some(&text));
        addresses.push(address);
        for address in addresses {
            self.index.mark_kept(address, false)?;
            let path = self.folder.join(address.to_string());
            remove(&path).map_err(failed("remove", &path))?;
        }
        let path = self.folder.join(digest(&text));
        remove(&path).map_err(failed("remove", &path))
    }

    fn noted(&self, text: &str) -> Vec<IpAddr> {
        let target = fs::read_link(self.folder.join(digest(text)));
        target.map(|target| split_addresses(&target)).unwrap_or_default()
    }

    fn text_of(&self, address: IpAddr) -> Option<String> {
        let target = fs::read_link(self.folder.join(address.to_string())).ok()?;
        target.into_os_string().into_string().ok()
    }
}

impl PodName {
    /// The pod's interface, unless the pod has no name, or one that cannot be.
    pub fn new(namespace: Option<String>, name: Option<String>, interface: &str) -> Option<Self> {
        let plain = |text: &String| {
            !text.is_empty() && !text.contains(|it: char| it == '/' || it.is_control())
        };
        let (namespace, name) = (namespace.filter(plain)?, name.filter(plain)?);
        Some(Self { namespace, name, interface: interface.to_owned() })
    }

    fn text(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.name, self.interface)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        let pod = Self { namespace: parts.next()?, name: parts.next()?, interface: parts.next()? };
        parts.next().is_none().then_some(pod)
    }
}

/// A pod's name may be longer than that of a file.
fn digest(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether this pod is one of the few whose first coming is the moment to look at what is kept for all: on average it is one in 64.
fn looks_at_all(text: &str) -> bool {
    matches!(digest(text).as_bytes(), [b'0', b'0'..=b'3', ..])
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many addresses are kept for pods that are away: more than a node has pods by far, and few enough to look at.
const MOST_AWAY: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> PodName {
        PodName { namespace: namespace.into(), name: name.into(), interface: "eth0".into() }
    }

    #[test]
    fn what_is_kept_for_pods_that_are_away_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "net", "boot").unwrap();
        let address = |number: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]);
        let here = Owner { container_id: "c".into(), interface: "eth0".into() };
        store.reserve(&here, address(0), 0).unwrap();
        for number in 0..3000 {
            let pod = pod("ci", &format!("run-{number}"));
            store.keep(Some(&pod), &[address(number)]).unwrap();
            if number % 100 == 0 {
                let links = fs::read_dir(store.index.folder().join("kept")).unwrap().count();
                assert!(links < 2 * (MOST_AWAY + 500), "{links} links");
            }
        }
        let kept = store.kept().unwrap();
        assert_eq!(kept.first().unwrap().0, address(0), "its pod is here");
        assert_eq!(kept.last().unwrap().0, address(2999), "the last that came");
        assert!(kept.len() >= MOST_AWAY);
        // Nobody has to spare what is forgotten.
        let forgotten = (1..3000).map(address).find(|it| !kept.iter().any(|(kept, _)| kept == it));
        let free = store.index.next_free(address(1), address(3000), true).unwrap();
        assert_eq!(free, forgotten);
    }

    #[test]
    fn the_pods_that_were_here_last_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "net", "boot").unwrap();
        let address = |number: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, number]);
        let come = |store: &mut Store, numbers: std::ops::Range<u16>| {
            for number in numbers {
                store.keep(Some(&pod("ci", &format!("run-{number}"))), &[address(number)]).unwrap();
            }
        };
        let [stays, returns, away] = [0, 1, 2].map(address);
        let owner = Owner { container_id: "c".into(), interface: "eth0".into() };
        store.reserve(&owner, stays, 0).unwrap();
        come(&mut store, 0..800);
        // It comes back once, for less time than passes between two looks.
        come(&mut store, 1..2);
        come(&mut store, 800..1500);
        // It was here all the time, and is restarted.
        store.release(&owner).unwrap();
        come(&mut store, 1500..1700);
        let kept = store.kept().unwrap();
        let is_kept = |wanted| kept.iter().any(|(address, _)| *address == wanted);
        assert_eq!([stays, returns, away].map(is_kept), [true, true, false]);
    }

    #[test]
    fn pods_are_chosen_by_patterns() {
        let chosen = |pattern: &str, namespace: &str, name: &str| {
            Patterns::new(vec!["x/y".into(), pattern.into()])
                .unwrap()
                .match_pod(&pod(namespace, name))
        };
        for (pattern, namespace, name, expected) in [
            ("prod/db-*", "prod", "db-0", true),
            ("prod/db-*", "prod", "web-0", false),
            ("prod/db-*", "test", "db-0", false),
            ("prod/db-0", "prod", "db-01", false),
            ("*/*", "prod", "db-0", true),
            ("*/a*b*c", "n", "a-b-b-c", true),
            ("*/a*b*c", "n", "a-c-b", false),
            ("*/*-0", "n", "db-0", true),
            ("n/a*a", "n", "a", false),
        ] {
            assert_eq!(chosen(pattern, namespace, name), expected, "{pattern} {namespace}/{name}");
        }
        for wrong in ["", "db-*", "a/b/c"] {
            assert!(Patterns::new(vec![wrong.into()]).unwrap_err().contains("NAMESPACE/POD"));
        }
    }
}
