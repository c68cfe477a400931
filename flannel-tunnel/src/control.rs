//! What the workers of an engine and their owner have in common: when to stop, and why one of them did.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::handover;

/// Whether workers go on.
#[derive(Debug)]
pub struct Control {
    /// Readable when workers are to stop.
    wake: OwnedFd,
    stops: AtomicBool,
    /// Workers that have not ended.
    running: AtomicUsize,
    failure: Mutex<Option<Failure>>,
    /// Notified when a worker ends by itself.
    ended: Notify,
}

/// Why a worker ended by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Failure {
    /// A device or socket is no longer usable.
    Broken(String),
    /// Another engine has taken over the device.
    TakenOver,
}

impl Control {
    /// That of so many workers, which run.
    ///
    /// # Errors
    ///
    /// The kernel's, when there are too many open files.
    pub fn new(workers: usize) -> io::Result<Self> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            stops: AtomicBool::new(false),
            running: AtomicUsize::new(workers),
            failure: Mutex::default(),
            ended: Notify::new(),
        })
    }

    /// Lets all workers stop.
    pub fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        // It stays readable, for all workers.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Whether workers are to stop.
    pub fn stops(&self) -> bool {
        self.stops.load(Ordering::Acquire)
    }

    /// Lets all workers stop because of `failure`, unless they were to stop anyway.
    pub fn fail(&self, failure: Failure) {
        if !self.stops() {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            self.ended.notify_waiters();
        }
        self.stop();
    }

    /// Counts a worker that has ended.
    pub fn worker_ended(&self) {
        self.running.fetch_sub(1, Ordering::Release);
    }

    /// Why a worker ended by itself, if one did.
    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves once a worker has ended by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.failure().is_some() {
                return;
            }
            ended.await;
        }
    }
}

impl handover::Engine for Control {
    fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn stops(&self) -> bool {
        self.stops()
    }

    fn taken_over(&self) {
        self.fail(Failure::TakenOver);
    }

    fn runs(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
