//! The place of a program on a device: a filter of ours, put there, looked after and removed.

use std::os::fd::AsRawFd;

use flannel_backend::filter::{self, Direction, Filter, Label};
use flannel_netlink::{Connection, Notice, Subject};
use tracing::debug;

use super::{
    engine::{Changes, Marks},
    error::BpfError,
    programs,
    sys::Program,
};

/// A filter of ours on one device.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) link: u32,
    handle: u32,
    marks: Marks,
    state: State,
    made_qdisc: bool,
}

/// What is known of the filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It stood there and may be gone.
    Doubtful,
    /// It stands there.
    Held,
    /// It was never ours.
    New,
}

impl Hook {
    /// The place on the device `link` of the network that listens on `port`.
    pub(super) fn new(link: u32, port: u16, marks: &Marks) -> Self {
        let handle = port.into();
        Self { link, handle, marks: marks.clone(), state: State::New, made_qdisc: false }
    }

    /// Whose filter is in the place: ours, with its program's number if it is of this version, or nobody's.
    ///
    /// # Errors
    ///
    /// [`BpfError::FilterTaken`] if it is another one's.
    pub(super) async fn look(
        &mut self,
        connection: &mut Connection,
    ) -> Result<Option<u32>, BpfError> {
        let Some(there) = self.find(connection).await? else {
            return Ok(None);
        };
        if !is_ours(&there) {
            return Err(self.taken());
        }
        self.made_qdisc = says_own_qdisc(&there);
        self.state = State::Doubtful;
        Ok(there.program.filter(|_| is_this_version(&there)))
    }

    /// Whether the filter with the program of this number is known to be there.
    pub(super) fn is_held(&self) -> bool {
        self.state == State::Held
    }

    pub(super) fn is_doubtful(&self) -> bool {
        self.state == State::Doubtful
    }

    /// Looks whether the filter with the program of this number is there.
    pub(super) async fn check(
        &mut self,
        connection: &mut Connection,
        number: u32,
    ) -> Result<bool, BpfError> {
        let there = self.find(connection).await?;
        let is_there = there.is_some_and(|it| self.is_right(&it, number));
        if is_there {
            self.state = State::Held;
        }
        Ok(is_there)
    }

    /// Doubts what is known if `notice` is about filters of this device, and not about what we did.
    pub(super) fn hear(&mut self, notice: &Notice, own_port: u32) {
        let is_about = match notice {
            Notice::Lost => true,
            Notice::Added { subject, port, .. } | Notice::Removed { subject, port } => {
                *subject == Subject::TrafficControl(self.link) && *port != own_port
            }
            _ => false,
        };
        if is_about && self.state == State::Held {
            self.state = State::Doubtful;
        }
    }

    /// Makes the filter run this program, if it does not already.
    pub(super) async fn take(
        &mut self,
        connection: &mut Connection,
        program: (&Program, u32),
        changes: &mut Changes,
    ) -> Result<(), BpfError> {
        let Some(there) = self.find(connection).await? else {
            match connection.apply_one(filter::create_clsact(self.link)).await {
                Ok(()) => {
                    self.made_qdisc = true;
                    changes.added += 1;
                }
                // It may be another one than we made.
                Err(error) if error.exists() => self.made_qdisc = false,
                Err(error) => return Err(BpfError::filter("create clsact", self.link, error)),
            }
            self.put(connection, program.0).await?;
            changes.added += 1;
            return Ok(());
        };
        if self.state == State::New && !is_ours(&there) {
            return Err(self.taken());
        }
        if self.is_right(&there, program.1) {
            self.state = State::Held;
            return Ok(());
        }
        self.put(connection, program.0).await?;
        changes.replaced += 1;
        Ok(())
    }

    /// Removes the filter if it is ours, of any version, and returns whether it was there.
    pub(super) async fn leave(&mut self, connection: &mut Connection) -> Result<bool, BpfError> {
        let there = self.find(connection).await?;
        self.state = State::New;
        let Some(there) = there.filter(is_ours) else {
            return Ok(false);
        };
        let made_qdisc = self.made_qdisc || says_own_qdisc(&there);
        filter::remove_filter(connection, self.link, self.handle, made_qdisc)
            .await
            .map_err(|source| BpfError::filter("remove the BPF filter", self.link, source))?;
        Ok(true)
    }

    pub(super) async fn find(
        &self,
        connection: &mut Connection,
    ) -> Result<Option<Filter>, BpfError> {
        let filters = filter::list_filters(connection, self.link, Direction::In)
            .await
            .map_err(|source| BpfError::filter("list filters", self.link, source))?;
        let is_here = |it: &Filter| it.priority == filter::PRIORITY && it.handle == self.handle;
        Ok(filters.into_iter().find(is_here))
    }

    async fn put(
        &mut self,
        connection: &mut Connection,
        program: &Program,
    ) -> Result<(), BpfError> {
        let label = self.label().to_string();
        let request = filter::replace(self.link, self.handle, program.as_raw_fd(), &label);
        let put = connection.apply_one(request).await;
        put.map_err(|source| BpfError::filter("put the BPF filter", self.link, source))?;
        debug!(link = self.link, handle = self.handle, "BPF filter put");
        self.state = State::Held;
        Ok(())
    }

    /// Whether it is what we would put there. Who made the qdisc is of no account.
    fn is_right(&self, filter: &Filter, number: u32) -> bool {
        let label = filter.label.as_ref().and_then(|label| label.parse::<Label>().ok());
        let own = self.label();
        filter.program == Some(number)
            && label.is_some_and(|it| Label { made_qdisc: own.made_qdisc, ..it } == own)
    }

    fn label(&self) -> Label {
        Label {
            version: programs::version(),
            network: self.marks.network,
            device: self.marks.device.clone(),
            made_qdisc: self.made_qdisc,
        }
    }

    fn taken(&self) -> BpfError {
        BpfError::FilterTaken { link: self.link, priority: filter::PRIORITY, handle: self.handle }
    }
}

fn is_this_version(filter: &Filter) -> bool {
    let label = filter.label.as_ref().and_then(|label| label.parse::<Label>().ok());
    label.is_some_and(|label| label.version == programs::version())
}

/// Of any version.
fn is_ours(filter: &Filter) -> bool {
    filter.label.as_ref().is_some_and(|label| label.parse::<Label>().is_ok())
}

fn says_own_qdisc(filter: &Filter) -> bool {
    let label = filter.label.as_ref().and_then(|label| label.parse::<Label>().ok());
    label.is_some_and(|label| label.made_qdisc)
}
