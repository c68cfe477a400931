mod entry;
mod news;

use std::collections::{BTreeMap, BTreeSet};

use self::{
    entry::{Actual, Entry},
    news::WatchedLink,
};
use super::{drift::Culprit, mark::Mark};
use crate::{
    diff::Op,
    state::{Key, Link, Object, Via},
    watch::{Notice, Subject},
};

/// What one owner wants, what the kernel holds of it, and where the two differ. Pure:
/// notifications, listings and results go in.
#[derive(Debug)]
pub(crate) struct Picture {
    mark: Mark,
    entries: BTreeMap<Key, Entry>,
    /// The keys whose entry does not fit.
    dirty: BTreeSet<Key>,
    drifts: BTreeMap<Key, Culprit>,
    /// The keys that others changed since we last wrote them.
    meddled: BTreeSet<Key>,
    links: BTreeMap<u32, Link>,
    our_devices: BTreeSet<u32>,
    watched: BTreeMap<String, WatchedLink>,
    /// How many wants name a device.
    users: BTreeMap<u32, usize>,
    failed: BTreeSet<Key>,
    retry: bool,
    stale: bool,
}

impl Picture {
    pub(crate) fn new(mark: Mark) -> Self {
        Self {
            mark,
            entries: BTreeMap::new(),
            dirty: BTreeSet::new(),
            drifts: BTreeMap::new(),
            meddled: BTreeSet::new(),
            links: BTreeMap::new(),
            our_devices: BTreeSet::new(),
            watched: BTreeMap::new(),
            users: BTreeMap::new(),
            failed: BTreeSet::new(),
            retry: false,
            stale: true,
        }
    }

    /// Wants `object`; true if that is new.
    pub(crate) fn want(&mut self, object: Object) -> bool {
        let key = object.key();
        if self.wanted(&key) == Some(&object) {
            return false;
        }
        self.count_users(&object, 1);
        let entry = self.entries.entry(key).or_default();
        let found = entry.found().to_vec();
        let before = entry.want.replace(object);
        entry.set(found);
        if let Some(before) = before {
            self.count_users(&before, -1);
        }
        self.unnote(&key);
        self.settle(key);
        true
    }

    /// Wants nothing under `key` any more; true if something was wanted.
    pub(crate) fn forget(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        let mut found = entry.found().to_vec();
        let ours = matches!(entry.actual, Actual::Fits);
        let Some(before) = entry.want.take() else {
            return false;
        };
        if !ours {
            found.retain(|object| self.mark.owns(object, &self.our_devices));
        }
        entry.set(found);
        self.count_users(&before, -1);
        self.unnote(key);
        self.settle(*key);
        true
    }

    pub(crate) fn wanted(&self, key: &Key) -> Option<&Object> {
        self.entries.get(key)?.want.as_ref()
    }

    pub(crate) fn wanted_keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.iter().filter(|(_, entry)| entry.want.is_some()).map(|(key, _)| key)
    }

    pub(crate) fn found(&self, key: &Key) -> &[Object] {
        self.entries.get(key).map_or(&[], Entry::found)
    }

    pub(crate) const fn dirty(&self) -> &BTreeSet<Key> {
        &self.dirty
    }

    pub(crate) fn fits(&self, key: &Key) -> bool {
        !self.dirty.contains(key)
    }

    pub(crate) const fn mark(&self) -> &Mark {
        &self.mark
    }

    pub(crate) const fn our_devices(&self) -> &BTreeSet<u32> {
        &self.our_devices
    }

    /// Whether the kernel may hold something else than the picture says, so that only a listing
    /// helps.
    pub(crate) const fn stale(&self) -> bool {
        self.stale
    }

    pub(crate) const fn set_stale(&mut self) {
        self.stale = true;
    }

    /// Says when `wanted` is altered or gone. Replaces an earlier call for the same name.
    pub(crate) fn watch_link(&mut self, wanted: Link) {
        self.watched.insert(
            wanted.name.clone(),
            WatchedLink { wanted, reported: None, by: Culprit::Unknown },
        );
    }

    pub(crate) fn unwatch_link(&mut self, name: &str) {
        self.watched.remove(name);
    }

    /// Takes in one notification. `own` is the netlink port of our own requests.
    pub(crate) fn fold(&mut self, notice: Notice, own: u32) {
        match notice {
            Notice::Lost => self.stale = true,
            Notice::Added { subject: Subject::Link(link), port, .. } => self.link_added(link, port),
            Notice::Removed { subject: Subject::Link(link), port } => {
                self.link_removed(&link, port)
            }
            Notice::Added { subject: Subject::Object(object), replaces, port } => {
                if let Object::Address(address) = object
                    && self.in_use(address.link)
                {
                    self.retry |= !self.failed.is_empty();
                }
                self.object_added(object, replaces);
                self.note_drift(object.key(), port, own);
            }
            Notice::Removed { subject: Subject::Object(object), port } => {
                match object {
                    // Routes that need the address or the object go without a notification. Our own
                    // order never deletes a nexthop object in use.
                    Object::Address(address) if self.in_use(address.link) => self.stale = true,
                    Object::Nexthop(_) if port != own => self.stale = true,
                    _ => {}
                }
                self.object_removed(&object);
                self.note_drift(object.key(), port, own);
            }
            Notice::Added { .. } | Notice::Removed { .. } => {}
        }
    }

    /// Takes in that the kernel did `op`.
    pub(crate) fn done(&mut self, op: &Op) {
        match op {
            Op::Delete(object) => self.object_removed(object),
            Op::Replace(object) => self.object_added(*object, true),
        }
        self.failed.remove(&op.object().key());
    }

    pub(crate) fn failed(&mut self, key: Key) {
        self.failed.insert(key);
    }

    /// Takes in the devices of a listing.
    pub(crate) fn listed_links(&mut self, links: Vec<Link>) {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        let ours = self.links.values().filter(|link| self.mark.devices.contains(&link.name));
        self.our_devices = ours.map(|link| link.index).collect();
    }

    /// Takes in everything else of a listing; returns how many objects are neither wanted nor
    /// marked.
    pub(crate) fn listed(&mut self, objects: impl IntoIterator<Item = Object>) -> usize {
        let mut found: BTreeMap<Key, Vec<Object>> = BTreeMap::new();
        let mut foreign = 0;
        for object in objects {
            let key = object.key();
            if self.wanted(&key).is_some() || self.mark.owns(&object, &self.our_devices) {
                found.entry(key).or_default().push(object);
            } else {
                foreign += 1;
            }
        }
        for (key, entry) in &mut self.entries {
            let was = entry.fits();
            entry.set(found.remove(key).unwrap_or_default());
            if was && !entry.fits() {
                self.drifts.entry(*key).or_insert(Culprit::Unknown);
                self.meddled.insert(*key);
            }
        }
        for (key, found) in found {
            self.entries.insert(key, Entry { want: None, actual: Actual::Other(found) });
        }
        self.entries.retain(|_, entry| entry.want.is_some() || !entry.fits());
        self.dirty =
            self.entries.iter().filter(|(_, entry)| !entry.fits()).map(|(key, _)| *key).collect();
        self.drifts.retain(|key, _| self.dirty.contains(key));
        self.failed.retain(|key| self.dirty.contains(key));
        self.stale = false;
        foreign
    }

    /// The keys that others changed and that are still wrong.
    pub(crate) fn drifted_keys(&self) -> impl Iterator<Item = &Key> {
        self.drifts.keys()
    }

    /// Whether somebody else changed what stands under `key` since this was last asked.
    pub(crate) fn take_meddled(&mut self, key: &Key) -> bool {
        self.meddled.remove(key)
    }

    /// Puts a key back that was reported but whose repair has to wait.
    pub(crate) fn drift_again(&mut self, key: Key) {
        if self.dirty.contains(&key) {
            self.drifts.entry(key).or_insert(Culprit::Unknown);
        }
    }

    fn link_added(&mut self, link: Link, port: u32) {
        let before = self.links.get(&link.index);
        let went_down = before
            .is_some_and(|before| (before.up && !link.up) || (before.running && !link.running));
        if went_down && self.in_use(link.index) {
            self.stale = true;
        }
        let came_up = link.running && !before.is_some_and(|before| before.running);
        if came_up {
            self.retry |= !self.failed.is_empty();
        }
        let is_ours = self.mark.devices.contains(&link.name);
        if is_ours && self.our_devices.insert(link.index) {
            self.stale = true;
        } else if !is_ours {
            self.our_devices.remove(&link.index);
        }
        if let Some(watched) = self.watched.get_mut(&link.name) {
            watched.by = Culprit::of_port(port);
            // After a device came back as it should be, its next fault is news again.
            if watched.fits(&link) {
                watched.reported = None;
            }
        }
        self.links.insert(link.index, link);
    }

    fn link_removed(&mut self, link: &Link, port: u32) {
        if let Some(watched) = self.watched.get_mut(&link.name) {
            watched.by = Culprit::of_port(port);
        }
        self.links.remove(&link.index);
        if self.in_use(link.index) {
            self.stale = true;
        }
        self.our_devices.remove(&link.index);
    }

    fn object_added(&mut self, object: Object, replaces: bool) {
        let key = object.key();
        let Some(entry) = self.entries.get_mut(&key) else {
            if self.mark.owns(&object, &self.our_devices) {
                self.entries.insert(key, Entry { want: None, actual: Actual::Other(vec![object]) });
                self.settle(key);
            }
            return;
        };
        let mut found = entry.found().to_vec();
        if !matches!(object, Object::Route(_)) || found.is_empty() {
            found = vec![object];
        } else if replaces {
            let behind = found.split_off(1).into_iter().filter(|it| *it != object);
            found = std::iter::once(object).chain(behind).collect();
        } else if !found.contains(&object) {
            // Appended behind or put in front: either way it does not belong there.
            found.push(object);
        }
        entry.set(found);
        self.settle(key);
    }

    fn object_removed(&mut self, object: &Object) {
        let key = object.key();
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let mut found = entry.found().to_vec();
        if matches!(object, Object::Route(_)) {
            let before = found.len();
            found.retain(|it| it != object);
            // It was there and we did not know it.
            self.stale |= before > 0 && found.len() == before;
        } else {
            found.clear();
        }
        entry.set(found);
        self.settle(key);
    }

    fn unnote(&mut self, key: &Key) {
        self.drifts.remove(key);
        self.meddled.remove(key);
        self.failed.remove(key);
    }

    fn note_drift(&mut self, key: Key, port: u32, own: u32) {
        if !self.dirty.contains(&key) {
            self.drifts.remove(&key);
        } else if port != own {
            self.drifts.insert(key, Culprit::of_port(port));
            self.meddled.insert(key);
        }
    }

    /// Brings what follows from an entry up to date.
    fn settle(&mut self, key: Key) {
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        if !entry.fits() {
            self.dirty.insert(key);
            return;
        }
        self.dirty.remove(&key);
        self.drifts.remove(&key);
        self.failed.remove(&key);
        if entry.want.is_none() {
            self.entries.remove(&key);
        }
    }

    fn in_use(&self, link: u32) -> bool {
        self.users.contains_key(&link) || self.our_devices.contains(&link)
    }

    fn count_users(&mut self, object: &Object, by: isize) {
        let link = match object {
            // Its device is the nexthop object's, which is wanted itself.
            Object::Route(route) if matches!(route.via, Via::Nexthop(_)) => None,
            object => object.link(),
        };
        let Some(link) = link else { return };
        let users = self.users.entry(link).or_default();
        *users = users.saturating_add_signed(by);
        if *users == 0 {
            self.users.remove(&link);
        }
    }
}

#[cfg(test)]
mod tests;
