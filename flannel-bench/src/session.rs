//! What all benchmarks work with.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    args::{Common, StoreKind},
    program::{NODE, Program},
};

/// The options, the programs, and a place for files.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) common: Common,
    pub(crate) programs: Vec<Program>,
    pub(crate) scratch: PathBuf,
    ended: AtomicBool,
}

impl Session {
    pub(crate) fn new(common: Common, programs: Vec<Program>) -> Self {
        let scratch = common.scratch.clone().unwrap_or_else(|| {
            let memory = Path::new("/dev/shm");
            if memory.is_dir() { memory.into() } else { std::env::temp_dir() }
        });
        Self { common, programs, scratch, ended: AtomicBool::new(false) }
    }

    /// Every program with every backend, and the name of their row.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (&Program, &str, String)> {
        self.common.backend.iter().flat_map(|backend| {
            self.programs.iter().map(move |program| {
                let row = match program.name.as_str() {
                    NODE => backend.clone(),
                    other => format!("{backend}, {other}"),
                };
                (program, backend.as_str(), row)
            })
        })
    }

    /// What each store is measured with, and what its tables are called.
    pub(crate) fn stores(&self) -> impl Iterator<Item = (StoreKind, String)> {
        let one = self.common.store.len() == 1;
        self.common.store.iter().map(move |store| {
            let suffix = if one && *store == StoreKind::File {
                String::new()
            } else {
                format!(", {}", store.name())
            };
            (*store, suffix)
        })
    }

    /// Runs, counted for people.
    pub(crate) fn runs(&self) -> impl Iterator<Item = u32> {
        (1..=self.common.runs).take_while(|_| !self.ended())
    }

    /// Has threads that measure end.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether they are to.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Says on standard error what is being done.
    pub(crate) fn progress(&self, run: u32, what: impl AsRef<str>) {
        let line = format!("run {run}/{}: {}\n", self.common.runs, what.as_ref());
        // Nobody may be reading, which is no reason to stop measuring.
        drop(io::stderr().write_all(line.as_bytes()));
    }
}
