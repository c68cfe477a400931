//! What is due by time: handshakes again, keepalives, and keys to be forgotten.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flannel_netlink::wireguard::PublicKey;
use rustix::event::{EventfdFlags, eventfd};
use tokio::time::Instant;

use super::session::Session;

/// By which other threads tell the ticker that a peer is used.
pub(super) struct Alarm {
    pub(super) fd: OwnedFd,
    rung: Mutex<Vec<Arc<Session>>>,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { fd, rung: Mutex::default() })
    }

    pub(super) fn ring(&self, session: Arc<Session>) {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Vec<Arc<Session>> {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The peers that something is due for, with when to look at them.
#[derive(Default)]
pub(super) struct Agenda(HashMap<PublicKey, (Instant, Arc<Session>)>);

impl Agenda {
    /// Lets `tick` do what is due at `now` for each peer, which says when to look again, and returns how long nothing is due.
    /// Peers that are gone are forgotten.
    pub(super) fn run(
        &mut self,
        alarm: &Alarm,
        now: Instant,
        is_there: impl Fn(&Arc<Session>) -> bool,
        mut tick: impl FnMut(&Session) -> Option<Duration>,
    ) -> Option<Duration> {
        for session in alarm.take() {
            self.0.insert(session.key, (now, session));
        }
        self.0.retain(|_, (due, session)| {
            if *due > now {
                return true;
            }
            match tick(session).filter(|_| is_there(session)) {
                Some(next) => {
                    *due = now + next;
                    true
                }
                None => false,
            }
        });
        let next = self.0.values().map(|(due, _)| *due).min()?;
        Some(next.saturating_duration_since(now))
    }
}
