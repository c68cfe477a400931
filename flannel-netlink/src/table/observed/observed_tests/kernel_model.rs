use super::*;

/// A kernel that tells of each change by others, and what it told.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) objects: BTreeMap<Key, Vec<Object>>,
    pub(super) told: Vec<Notice>,
}

impl Kernel {
    pub(super) fn replace(&mut self, object: Object, port: u32) {
        let place = self.objects.entry(object.key()).or_default();
        let replaces = !place.is_empty();
        match place.first().copied() {
            // Writing what is there already is not told.
            Some(first) if first == object => return,
            // Refused with EEXIST.
            Some(_) if place[1..].contains(&object) => return,
            Some(_) => place[0] = object,
            None => place.push(object),
        }
        self.tell(Notice::Added { subject: Subject::Object(object), replaces, port }, port);
    }

    pub(super) fn append(&mut self, object: Object, port: u32) {
        let place = self.objects.entry(object.key()).or_default();
        if !matches!(object, Object::Route(_)) || place.contains(&object) {
            return;
        }
        place.push(object);
        self.tell(Notice::Added { subject: Subject::Object(object), replaces: false, port }, port);
    }

    pub(super) fn delete(&mut self, object: &Object, port: u32) {
        let Some(place) = self.objects.get_mut(&object.key()) else {
            return;
        };
        let Some(at) = place.iter().position(|it| it == object) else {
            return;
        };
        place.remove(at);
        if place.is_empty() {
            self.objects.remove(&object.key());
        }
        self.tell(Notice::Removed { subject: Subject::Object(*object), port }, port);
    }

    pub(super) fn tell(&mut self, notice: Notice, port: u32) {
        if port != OURS {
            self.told.push(notice);
        }
    }

    pub(super) fn listing(&self) -> Vec<Object> {
        self.objects.values().flatten().copied().collect()
    }
}
