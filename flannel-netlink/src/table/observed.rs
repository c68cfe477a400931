mod changes;
mod cursor;
mod entries;
mod overrides;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use self::{changes::WatchedLink, entries::Entries, overrides::Overrides};
pub(crate) use self::{cursor::Cursor, entries::Listed};
use super::{drift::ChangedBy, mark::Mark};
use crate::{
    diff::Op,
    state::{Key, Link, Object, Via},
    watch::{Notice, Subject},
};

/// What one owner wants, what the kernel is known to hold of it, and where the two differ. Pure: notifications, listings and
/// results go in.
#[derive(Debug)]
pub(crate) struct ObservedTable {
    mark: Mark,
    entries: Entries,
    overrides: Overrides,
    drifts: BTreeMap<Key, ChangedBy>,
    /// The keys that others changed since we last wrote them.
    changed_by_others: BTreeSet<Key>,
    links: BTreeMap<u32, Link>,
    our_devices: BTreeSet<u32>,
    watched: BTreeMap<String, WatchedLink>,
    /// How many wants name a device.
    users: BTreeMap<u32, usize>,
    failed: BTreeSet<Key>,
    retry: bool,
    stale: bool,
}

impl ObservedTable {
    pub(crate) fn new(mark: Mark) -> Self {
        Self {
            mark,
            entries: Entries::default(),
            overrides: Overrides::default(),
            drifts: BTreeMap::new(),
            changed_by_others: BTreeSet::new(),
            links: BTreeMap::new(),
            our_devices: BTreeSet::new(),
            watched: BTreeMap::new(),
            users: BTreeMap::new(),
            failed: BTreeSet::new(),
            retry: false,
            stale: true,
        }
    }

    /// Wants `object` and remembers `tag` with it; returns what was wanted before.
    pub(crate) fn want(&mut self, object: Object, tag: u32) -> Option<Object> {
        let before = self.entries.want(object, tag);
        if before != Some(object) {
            self.count_users(&object, 1);
            if let Some(before) = before {
                self.count_users(&before, -1);
            }
            self.unnote(&object.key());
        }
        before
    }

    /// Wants nothing under `key` any more; returns what was wanted.
    pub(crate) fn forget(&mut self, key: &Key) -> Option<Object> {
        let is_owned = |object: &Object| self.mark.owns(object, &self.our_devices);
        let wanted = self.entries.forget(key, is_owned)?;
        self.count_users(&wanted, -1);
        self.unnote(key);
        Some(wanted)
    }

    pub(crate) fn wanted(&self, key: &Key) -> Option<Object> {
        self.entries.wanted(key)
    }

    pub(crate) fn wanted_tagged(&self, key: &Key) -> Option<(u32, Object)> {
        self.entries.wanted_tagged(key)
    }

    /// Routes of others inside of these blocks are left out of account: they lead to this host's own pods.
    pub(crate) fn set_local(&mut self, blocks: Vec<IpNetwork>) {
        self.overrides.local = blocks;
    }

    pub(crate) fn wanted_keys(&self) -> impl Iterator<Item = Key> {
        self.wanted_tags().map(|(_, key)| key)
    }

    pub(crate) fn wanted_tags(&self) -> impl Iterator<Item = (u32, Key)> {
        self.entries.wanted_tags()
    }

    /// What is wanted under `key`, and what the kernel holds there in its order.
    pub(crate) fn both(&self, key: &Key) -> (Option<Object>, Vec<Object>) {
        self.entries.both(key)
    }

    /// To be called before the first stage.
    pub(crate) fn begin_stages(&mut self) {
        self.entries.count_differing();
    }

    /// The steps for the next keys behind a cursor that are `due`: `most`, or a few more for the last key. None at its end.
    pub(crate) fn next_steps(
        &self,
        cursor: &mut Cursor,
        most: usize,
        mut due: impl FnMut(&Key) -> bool,
    ) -> Vec<Op> {
        let mut ops = Vec::new();
        while let Some((kind, from)) = cursor.place() {
            for (key, wanted, found) in self.entries.differing(cursor.stage(), kind, from) {
                if ops.len() >= most {
                    cursor.go_to(key);
                    return ops;
                }
                if due(&key) {
                    cursor.stage().steps_for(wanted.as_ref(), &found, &mut ops);
                }
            }
            cursor.end_kind();
        }
        ops
    }

    pub(crate) fn fits(&self, key: &Key) -> bool {
        self.entries.fits(key)
    }

    pub(crate) const fn mark(&self) -> &Mark {
        &self.mark
    }

    pub(crate) const fn our_devices(&self) -> &BTreeSet<u32> {
        &self.our_devices
    }

    /// Whether the kernel may hold something else than the observed says, so that only a listing
    /// helps.
    pub(crate) const fn stale(&self) -> bool {
        self.stale
    }

    /// Returns what it was before.
    pub(crate) const fn set_stale(&mut self, stale: bool) -> bool {
        std::mem::replace(&mut self.stale, stale)
    }

    /// Says when `wanted` is altered or gone. Replaces an earlier call for the same name.
    pub(crate) fn watch_link(&mut self, wanted: Link) {
        self.watched.insert(
            wanted.name.clone(),
            WatchedLink { wanted, reported: None, by: ChangedBy::Unknown },
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
                if let Some(route) = self.as_override(&object) {
                    self.overrides.added(route, ChangedBy::of_port(port));
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
                if let Some(route) = self.as_override(&object) {
                    self.overrides.removed(&route, ChangedBy::of_port(port));
                }
                self.object_removed(&object);
                self.note_drift(object.key(), port, own);
            }
            Notice::Added { .. } | Notice::Removed { .. } => {}
        }
    }

    /// Takes in that the kernel did `op`; returns whether it was known to hold something there
    /// before.
    pub(crate) fn done(&mut self, op: &Op) -> bool {
        self.failed.remove(&op.object().key());
        match op {
            Op::Delete(object) => {
                self.object_removed(object);
                true
            }
            Op::Replace(object) => self.object_added(*object, true) == Some(true),
        }
    }

    pub(crate) fn failed(&mut self, key: Key) {
        self.failed.insert(key);
    }

    /// Takes in the devices of a listing that begins. Until it ends the observed is stale.
    pub(crate) fn begin_listing(&mut self, links: Vec<Link>) {
        self.stale = true;
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        let ours = self.links.values().filter(|link| self.mark.devices.contains(&link.name));
        self.our_devices = ours.map(|link| link.index).collect();
        self.entries.begin_listing();
        self.overrides.begin_listing();
    }

    /// Takes in one object of a part of a listing. Each attempt at a part has a [`Listed`] of its
    /// own.
    pub(crate) fn list(&mut self, listed: &mut Listed, object: Object) {
        listed.read += 1;
        if self.entries.list(listed, object) {
            return;
        }
        if self.mark.owns(&object, &self.our_devices) {
            listed.push_other(object);
        } else {
            listed.foreign += 1;
            if let Some(route) = self.as_override(&object) {
                self.overrides.list(route);
            }
        }
    }

    /// Takes in that the listing is complete, and that these attempts were good. Returns how many
    /// objects were read, and how many are neither wanted nor marked.
    pub(crate) fn end_listing(&mut self, parts: Vec<Listed>) -> (usize, usize) {
        let read = parts.iter().map(|part| part.read).sum();
        let foreign = parts.iter().map(|part| part.foreign).sum();
        for key in self.entries.end_listing(parts) {
            self.drifts.entry(key).or_insert(ChangedBy::Unknown);
            self.changed_by_others.insert(key);
        }
        self.overrides.end_listing();
        self.drifts.retain(|key, _| !self.entries.fits(key));
        self.failed.retain(|key| !self.entries.fits(key));
        self.stale = false;
        (read, foreign)
    }

    /// The keys that others changed and that are still wrong.
    pub(crate) fn drifted_keys(&self) -> impl Iterator<Item = &Key> {
        self.drifts.keys()
    }

    /// Whether somebody else changed what stands under `key` since this was last asked.
    pub(crate) fn take_changed_by_others(&mut self, key: &Key) -> bool {
        self.changed_by_others.remove(key)
    }

    /// Puts a key back that was reported but whose repair has to wait.
    pub(crate) fn drift_again(&mut self, key: Key) {
        if !self.fits(&key) {
            self.drifts.entry(key).or_insert(ChangedBy::Unknown);
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
            watched.by = ChangedBy::of_port(port);
            // After a device came back as it should be, its next fault is news again.
            if watched.fits(&link) {
                watched.reported = None;
            }
        }
        self.links.insert(link.index, link);
    }

    fn link_removed(&mut self, link: &Link, port: u32) {
        if let Some(watched) = self.watched.get_mut(&link.name) {
            watched.by = ChangedBy::of_port(port);
        }
        self.links.remove(&link.index);
        if self.in_use(link.index) {
            self.stale = true;
        }
        self.our_devices.remove(&link.index);
    }

    fn object_added(&mut self, object: Object, replaces: bool) -> Option<bool> {
        let held = self.entries.added(object, replaces);
        if held.is_some() {
            // What somebody puts in the place of ours that is not wanted any more is theirs.
            self.entries.disown(&object.key(), |object| self.mark.owns(object, &self.our_devices));
            self.settle(&object.key());
        } else if self.mark.owns(&object, &self.our_devices) {
            self.entries.set_held(&object.key(), vec![object]);
        }
        held
    }

    fn object_removed(&mut self, object: &Object) {
        // Otherwise it was there and we did not know it.
        self.stale |= !self.entries.removed(object);
        self.settle(&object.key());
    }

    fn unnote(&mut self, key: &Key) {
        self.drifts.remove(key);
        self.changed_by_others.remove(key);
        self.failed.remove(key);
    }

    fn note_drift(&mut self, key: Key, port: u32, own: u32) {
        if self.fits(&key) {
            self.drifts.remove(&key);
        } else if port != own {
            self.drifts.insert(key, ChangedBy::of_port(port));
            self.changed_by_others.insert(key);
        }
    }

    /// Where all is right now, nothing drifted and nothing failed.
    fn settle(&mut self, key: &Key) {
        if (!self.drifts.is_empty() || !self.failed.is_empty()) && self.fits(key) {
            self.drifts.remove(key);
            self.failed.remove(key);
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
mod observed_tests;
