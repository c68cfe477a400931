use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Interface, Search, SelectError, select_interface};
use crate::{Connection, Monitor, Namespace, Notice, OpenError, Subject, Topic, state::Object};

/// Tells when the same question for an interface has another answer: another MTU, another address,
/// a device made anew, another device.
#[derive(Debug)]
pub struct InterfaceWatch {
    connection: Connection,
    monitor: Monitor,
    search: Search,
    current: Interface,
    check_at: Option<Instant>,
}

impl InterfaceWatch {
    /// Watches the answer of [`select_interface`] in `namespace`, where `current` is what it said
    /// last. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a socket cannot be made there.
    pub fn open(
        namespace: &Namespace,
        search: Search,
        current: Interface,
    ) -> Result<Self, OpenError> {
        let monitor = Monitor::open_for(namespace, &TOPICS)?;
        let connection = Connection::open(namespace)?;
        // Something may have changed since `current` was found.
        let check_at = Some(Instant::now());
        Ok(Self { connection, monitor, search, current, check_at })
    }

    /// The last answer.
    pub const fn current(&self) -> &Interface {
        &self.current
    }

    /// Resolves with the new answer when it differs from the last. While no interface fits, for
    /// example because it is being made anew, the last answer stands; and while only a
    /// [doubtful](Interface::is_doubtful) one does, unless the last was one or has the same name.
    ///
    /// # Errors
    ///
    /// [`SelectError::List`] when the kernel cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call tells the difference.
    pub async fn changed(&mut self) -> Result<Interface, SelectError> {
        loop {
            let notice = match self.check_at {
                Some(at) if at <= Instant::now() => None,
                Some(at) => timeout_at(at, self.monitor.next()).await.ok(),
                None => Some(self.monitor.next().await),
            };
            match notice {
                Some(Ok(notice)) if !concerns(&notice) => {}
                Some(_) => {
                    self.check_at.get_or_insert_with(|| Instant::now() + GATHER);
                }
                None => {
                    let mut answer = select_interface(&mut self.connection, &self.search).await;
                    self.check_at = None;
                    if let Ok(same) = &mut answer
                        && same.name == self.current.name
                    {
                        same.is_doubtful &= self.current.is_doubtful;
                    }
                    match answer {
                        // The right one is being made anew, or its routes are.
                        Ok(interface) if interface.is_doubtful && !self.current.is_doubtful => {}
                        Ok(interface) if interface != self.current => {
                            self.current = interface.clone();
                            return Ok(interface);
                        }
                        Ok(_) | Err(SelectError::NoneFits { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }
}

/// Tells when it is worth asking for an interface again that was not there.
#[derive(Debug)]
pub struct InterfaceNews(Monitor);

impl InterfaceNews {
    /// Listens in `namespace` from now on. Needs a tokio runtime with I/O and time.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a socket cannot be made there.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        Monitor::open_for(namespace, &TOPICS).map(Self)
    }

    /// Resolves a moment after devices, addresses or default routes changed, so that what comes
    /// together is seen together.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses what it heard: ask for the interface before calling again.
    pub async fn next(&mut self) {
        while matches!(self.0.next().await, Ok(notice) if !concerns(&notice)) {}
        sleep(GATHER).await;
    }
}

/// Whether the answer may be another one now.
fn concerns(notice: &Notice) -> bool {
    match notice {
        Notice::Lost => true,
        Notice::Added { subject, .. } | Notice::Removed { subject, .. } => match subject {
            Subject::Link(_) | Subject::Object(Object::Address(_)) => true,
            Subject::Object(Object::Route(route)) => route.destination.prefix() == 0,
            Subject::Object(_) | Subject::Other(_) | Subject::TrafficControl(_) => false,
        },
    }
}

/// All that [`concerns`] takes. Ten thousand routes of peers are none of it.
const TOPICS: [Topic; 3] = [Topic::Addresses, Topic::DefaultRoutes, Topic::Links];
/// Changes come in groups: a device, its addresses, its routes.
const GATHER: Duration = Duration::from_millis(100);
