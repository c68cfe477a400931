use super::{
    super::drift::{ChangedBy, Drift, DriftChange, DriftSubject},
    ObservedTable,
};
use crate::state::{Key, Link};

#[derive(Debug)]
pub(super) struct WatchedLink {
    pub(super) wanted: Link,
    pub(super) reported: Option<Option<Link>>,
    pub(super) by: ChangedBy,
}

impl WatchedLink {
    /// Whether the device is as wanted, in all that its owner may set. Its queue may be longer.
    pub(super) fn fits(&self, now: &Link) -> bool {
        let compared = |link: &Link| (link.index, link.mac, link.mtu, link.up, link.link_local);
        compared(now) == compared(&self.wanted)
            && now.kind == self.wanted.kind
            && now.queue >= self.wanted.queue
    }
}

impl ObservedTable {
    /// Whether [`take_changes`](Self::take_changes) would return anything.
    pub(crate) fn has_changes(&self, due: impl Fn(&Key) -> bool) -> bool {
        self.drifts.keys().any(due)
            || (self.retry && !self.failed.is_empty())
            || self.has_changed_overrides()
            || self.watched.values().any(|watched| self.link_change(watched).is_some())
    }

    /// All differences that others made since the last call, of keys that are `due`, and what may
    /// work now.
    pub(crate) fn take_changes(&mut self, due: impl Fn(&Key) -> bool) -> Vec<Drift> {
        let mut changes = self.take_link_changes();
        changes.extend(self.take_drifts(due));
        changes.extend(self.take_changed_overrides());
        if std::mem::take(&mut self.retry) {
            changes.extend(self.failed.iter().map(|key| Drift {
                subject: DriftSubject::Object(*key),
                change: DriftChange::MayWorkNow,
                by: ChangedBy::Kernel,
            }));
        }
        changes
    }

    fn take_link_changes(&mut self) -> Vec<Drift> {
        let mut changes = Vec::new();
        let watched: Vec<String> = self.watched.keys().cloned().collect();
        for name in watched {
            let Some(now) = self.watched.get(&name).and_then(|watched| self.link_change(watched))
            else {
                continue;
            };
            let watched = self.watched.get_mut(&name).expect("its name comes from the map");
            watched.reported = Some(now.clone());
            changes.push(Drift {
                subject: DriftSubject::Link(watched.wanted.clone()),
                change: now.map_or(DriftChange::Removed, DriftChange::AlteredLink),
                by: watched.by,
            });
        }
        changes
    }

    /// The differences of objects that others made since the last call, of keys that are `due`.
    pub(crate) fn take_drifts(&mut self, due: impl Fn(&Key) -> bool) -> Vec<Drift> {
        let mut changes = Vec::new();
        let keys: Vec<Key> = self.drifts.keys().filter(|key| due(key)).copied().collect();
        for key in keys {
            let by = self.drifts.remove(&key).expect("its key comes from the map");
            let (want, found) = self.both(&key);
            let change = match (want, found.first()) {
                (Some(_), None) => DriftChange::Removed,
                (Some(_), Some(first)) => {
                    // The one that is not ours, which may stand behind ours.
                    let other = found.iter().find(|object| Some(**object) != want);
                    DriftChange::Altered(*other.unwrap_or(first))
                }
                (None, Some(object)) => DriftChange::Stray(*object),
                (None, None) => continue,
            };
            changes.push(Drift { subject: DriftSubject::Object(key), change, by });
        }
        changes
    }

    /// What to report about a watched device: its state now (`None` inside: gone), unless it is as
    /// wanted or already reported so.
    fn link_change(&self, watched: &WatchedLink) -> Option<Option<Link>> {
        let wanted = &watched.wanted;
        let now = self.links.get(&wanted.index).filter(|link| link.name == wanted.name);
        if now.is_some_and(|now| watched.fits(now)) {
            return None;
        }
        let now = now.cloned();
        (watched.reported.as_ref() != Some(&now)).then_some(now)
    }
}
