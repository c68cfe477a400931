//! A value that is replaced as a whole while others read it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// The value, for who replaces it.
#[derive(Debug, Default)]
pub struct Snapshot<T> {
    generation: AtomicU64,
    value: Mutex<Arc<T>>,
}

/// The value as one reader has it: looking whether it is still the newest costs one load and no lock.
#[derive(Debug)]
pub struct Reader<T> {
    generation: u64,
    value: Arc<T>,
}

impl<T> Snapshot<T> {
    /// Puts `value` in the place of what readers have.
    pub fn replace(&self, value: T) {
        let value = Arc::new(value);
        let mut current = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, value);
        self.generation.fetch_add(1, Ordering::Release);
        drop(current);
        // Whoever lets go of it last pays for that: usually a reader.
        drop(before);
    }

    /// The value as it is now.
    pub fn reader(&self) -> Reader<T> {
        let current = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Reader { generation: self.generation.load(Ordering::Acquire), value: Arc::clone(&current) }
    }
}

impl<T> Reader<T> {
    /// The newest value.
    pub fn get(&mut self, of: &Snapshot<T>) -> &T {
        if of.generation.load(Ordering::Acquire) != self.generation {
            *self = of.reader();
        }
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_reader_sees_what_was_put_there_last() {
        let snapshot = Snapshot::default();
        let mut reader = snapshot.reader();
        assert_eq!(*reader.get(&snapshot), 0);
        snapshot.replace(7);
        assert_eq!(*reader.get(&snapshot), 7);
    }

    #[test]
    fn readers_never_go_back() {
        let snapshot = Snapshot::<u64>::default();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let (mut reader, mut last) = (snapshot.reader(), 0);
                    while last < 1000 {
                        let now = *reader.get(&snapshot);
                        assert!(now >= last);
                        last = now;
                    }
                });
            }
            (1..=1000).for_each(|n| snapshot.replace(n));
        });
    }
}
