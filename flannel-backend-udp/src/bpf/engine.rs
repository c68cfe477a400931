//! What the kernel runs for us, kept as it should be.

use std::{net::IpAddr, os::fd::AsRawFd, sync::Arc, time::Duration};

use flannel_netlink::{
    Connection, KernelError, LinkChange, Monitor, Namespace, Notice, Subject, Topic, alter_link,
    link_by_index, state,
};
use ipnetwork::IpNetwork;
use nix::libc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::{
    content::{Change, Content},
    error::BpfError,
    filter::{self, Direction, Filter},
    layout::{Config, Counts},
    programs::{self, Programs},
};
use crate::plan::Orders;

/// The programs of one network and the places where the kernel runs them, but for the route, which has an owner already.
///
/// Dropping it leaves the data path up.
#[derive(Debug)]
pub(crate) struct Engine {
    connection: Connection,
    monitor: Monitor,
    programs: Arc<Programs>,
    /// Where the filter is or was, and its handle there.
    link: u32,
    handle: u32,
    /// What the maps hold; `None` if they have to be read.
    content: Option<Content>,
    place: Place,
    made_qdisc: bool,
    next_check: Instant,
}

/// Counts what the programs do.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    programs: Arc<Programs>,
    before: Counts,
}

/// What is known of the filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// It stood there and may be gone.
    Doubtful,
    /// It stands there.
    Held,
    /// It was never ours.
    New,
}

/// What a sync wrote.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    pub(crate) added: u64,
    pub(crate) replaced: u64,
    pub(crate) removed: u64,
}

impl Meter {
    /// How many packets met which end. None if the kernel does not tell.
    pub(crate) fn counts(&self) -> Counts {
        let Ok(now) = self.programs.counts() else {
            return Counts::default();
        };
        let before = &self.before;
        Counts {
            sent: now.sent.since(before.sent),
            sent_on: now.sent_on.since(before.sent_on),
            received: now.received.since(before.received),
            received_on: now.received_on.since(before.received_on),
            spoofed_source: now.spoofed_source.since(before.spoofed_source),
            unknown_peer: now.unknown_peer.since(before.unknown_peer),
        }
    }
}

impl Engine {
    /// Takes over what an earlier process has left on the network card `link` for this port, or loads the programs anew. The kernel
    /// runs them from the next [`sync`](Self::sync) on.
    ///
    /// # Errors
    ///
    /// [`BpfError`] with the reason why the kernel does not do it here.
    ///
    /// # Cancel safety
    ///
    /// Writes nothing that stays.
    pub(crate) async fn open(
        namespace: &Namespace,
        link: u32,
        port: u16,
    ) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Open { source };
        // The monitor first, so that no change falls between the listing and it.
        let monitor = Monitor::open_for(namespace, &[Topic::TrafficControl]).map_err(failed)?;
        let mut connection = Connection::open(namespace).map_err(failed)?;
        let handle = u32::from(port);
        let there = find(&mut connection, link, handle).await?;
        let ours = there.as_ref().filter(|it| is_ours(it)).and_then(|it| it.program);
        let adopted = ours.and_then(Programs::adopt);
        let place = match (&there, &adopted) {
            (_, Some(_)) => Place::Held,
            (Some(filter), None) if is_any_version_of_ours(filter) => Place::Doubtful,
            (Some(_), None) => {
                return Err(BpfError::FilterTaken { link, priority: filter::PRIORITY, handle });
            }
            (None, None) => Place::New,
        };
        let programs = match adopted {
            Some(programs) => {
                info!(link, program = programs.receive_id(), "BPF programs adopted");
                programs
            }
            None => {
                let programs = Programs::load()?;
                try_places(&programs).await?;
                programs
            }
        };
        let made_qdisc = there.as_ref().is_some_and(says_own_qdisc);
        let next_check = Instant::now() + CHECK_EVERY;
        Ok(Self {
            connection,
            monitor,
            programs: Arc::new(programs),
            link,
            handle,
            content: None,
            place,
            made_qdisc,
            next_check,
        })
    }

    /// What the route of the network runs. The descriptor in it is open while this engine is there.
    pub(crate) fn program(&self) -> state::Program {
        self.programs.sending()
    }

    /// Makes maps and filter what `orders` ask for. `tunnel` is the index of the tunnel device.
    ///
    /// Everything is done before the filter looks at the first packet; the route comes last, by its owner.
    ///
    /// # Errors
    ///
    /// [`BpfError`] with the first thing that the kernel refused. What does not depend on it is done.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves part of the work done; the next call does the rest.
    pub(crate) async fn sync(&mut self, orders: &Orders, tunnel: u32) -> Result<Changes, BpfError> {
        let mut changes = Changes::default();
        let failed = self.fill(orders, &mut changes).err();
        if self.link != orders.link {
            self.leave().await?;
            (self.link, self.place, self.made_qdisc) = (orders.link, Place::New, false);
        }
        let link = link_by_index(&mut self.connection, self.link)
            .await
            .map_err(|source| BpfError::filter("look at the network card", self.link, source))?;
        let address = |wants_ipv4| orders.local.iter().find(|it| it.is_ipv4() == wants_ipv4);
        let config = Config {
            tunnel,
            send: self.programs.send_id(),
            source_check: orders.source_check,
            has_link_header: link.is_none_or(|link| link.mac.is_some()),
            local4: address(true).and_then(|it| match it {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            local6: address(false).and_then(|it| match it {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(*v6),
            }),
            port: orders.port,
        };
        self.configure(config, &mut changes)?;
        if self.place != Place::Held {
            self.take_place(&mut changes).await?;
        }
        failed.map_or(Ok(changes), Err)
    }

    /// Resolves when maps or filter may not be as they were left, by somebody else's doing.
    ///
    /// The kernel tells about filters. About maps it does not, so they are read every half second, and less often if there is so
    /// much in them that it would take more than a thousandth of the time.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if that can no longer be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn drifted(&mut self) -> Result<(), BpfError> {
        loop {
            if self.place == Place::Doubtful && !self.is_in_place().await? {
                warn!(link = self.link, "filter of the BPF program is gone");
                return Ok(());
            }
            tokio::select! {
                notice = self.monitor.next() => {
                    let notice = notice.map_err(|source| BpfError::Watch { source })?;
                    if self.is_about_filters(&notice) {
                        self.place = Place::Doubtful;
                    }
                }
                () = sleep_until(self.next_check) => {
                    if self.is_altered()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Counts packets from now on.
    pub(crate) fn meter(&self) -> Meter {
        // Programs that were adopted have counted before.
        let before = self.programs.counts().unwrap_or_default();
        Meter { programs: Arc::clone(&self.programs), before }
    }

    /// Takes the receiving program from the network card. The sending one is the route's, which goes before.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if the kernel refuses.
    pub(crate) async fn teardown(mut self) -> Result<(), BpfError> {
        self.leave().await
    }

    fn fill(&mut self, orders: &Orders, changes: &mut Changes) -> Result<(), BpfError> {
        let mut content = match self.content.take() {
            Some(content) => content,
            None => self.programs.content()?,
        };
        let mut failed = None;
        for step in content.diff(&Content::desired(&orders.endpoints)) {
            if let Err(error) = self.programs.take(&step) {
                failed.get_or_insert(error);
                continue;
            }
            content.apply(&step);
            match step.change {
                Change::Add(_) => changes.added += 1,
                Change::Remove => changes.removed += 1,
                Change::Replace(_) => changes.replaced += 1,
            }
        }
        self.content = Some(content);
        failed.map_or(Ok(()), Err)
    }

    fn configure(&self, config: Config, changes: &mut Changes) -> Result<(), BpfError> {
        match self.programs.config()? {
            Some(there) if there == config => return Ok(()),
            Some(_) => changes.replaced += 1,
            None => changes.added += 1,
        }
        self.programs.set_config(&config)
    }

    async fn take_place(&mut self, changes: &mut Changes) -> Result<(), BpfError> {
        let there = find(&mut self.connection, self.link, self.handle).await?;
        let Some(there) = there else {
            let made = self.connection.apply_one(filter::create_clsact(self.link)).await;
            match made {
                Ok(()) => {
                    self.made_qdisc = true;
                    changes.added += 1;
                }
                // It may be another one than we made.
                Err(error) if error.exists() => self.made_qdisc = false,
                Err(error) => return Err(BpfError::filter("create clsact", self.link, error)),
            }
            self.put_filter().await?;
            changes.added += 1;
            return Ok(());
        };
        if self.place == Place::New && !is_any_version_of_ours(&there) {
            return Err(BpfError::FilterTaken {
                link: self.link,
                priority: filter::PRIORITY,
                handle: self.handle,
            });
        }
        if self.is_this(&there) {
            self.place = Place::Held;
            return Ok(());
        }
        self.put_filter().await?;
        changes.replaced += 1;
        Ok(())
    }

    async fn put_filter(&mut self) -> Result<(), BpfError> {
        let program = self.programs.receiving().as_raw_fd();
        let request = filter::replace(self.link, self.handle, program, &label(self.made_qdisc));
        let put = self.connection.apply_one(request).await;
        put.map_err(|source| BpfError::filter("put the BPF filter", self.link, source))?;
        debug!(link = self.link, handle = self.handle, "BPF filter put");
        self.place = Place::Held;
        Ok(())
    }

    async fn leave(&mut self) -> Result<(), BpfError> {
        let there = find(&mut self.connection, self.link, self.handle).await?;
        self.place = Place::New;
        if there.is_some_and(|it| is_any_version_of_ours(&it)) {
            remove(&mut self.connection, self.link, self.handle, self.made_qdisc).await?;
        }
        Ok(())
    }

    fn is_about_filters(&self, notice: &Notice) -> bool {
        match notice {
            Notice::Lost => true,
            Notice::Added { subject, port, .. } | Notice::Removed { subject, port } => {
                *subject == Subject::TrafficControl(self.link) && *port != self.connection.port()
            }
            _ => false,
        }
    }

    async fn is_in_place(&mut self) -> Result<bool, BpfError> {
        let there = find(&mut self.connection, self.link, self.handle).await?;
        let is_there = there.is_some_and(|it| self.is_this(&it));
        if is_there {
            self.place = Place::Held;
        }
        Ok(is_there)
    }

    fn is_this(&self, filter: &Filter) -> bool {
        is_ours(filter) && filter.program == Some(self.programs.receive_id())
    }

    /// Whether somebody else wrote to the maps.
    fn is_altered(&mut self) -> Result<bool, BpfError> {
        let began = Instant::now();
        let actual = self.programs.content()?;
        let took = began.elapsed();
        self.next_check = began + CHECK_EVERY.max(took * CHECK_SHARE);
        let is_altered = self.content.as_ref().is_some_and(|content| *content != actual);
        if is_altered {
            warn!("somebody else altered the BPF maps of peers");
            self.content = Some(actual);
        }
        Ok(is_altered)
    }
}

/// Removes the filter that an earlier process has left on `link` for this port, for an engine that is without programs: the socket
/// is to have all datagrams. Returns whether there was one.
///
/// # Errors
///
/// [`BpfError`] if the kernel refuses.
///
/// # Cancel safety
///
/// Dropping it may leave the clsact qdisc.
pub(crate) async fn remove_leftover(
    namespace: &Namespace,
    link: u32,
    port: u16,
) -> Result<bool, BpfError> {
    let mut connection = Connection::open(namespace).map_err(|source| BpfError::Open { source })?;
    let handle = u32::from(port);
    let there = find(&mut connection, link, handle).await?;
    let Some(there) = there.filter(is_any_version_of_ours) else {
        return Ok(false);
    };
    remove(&mut connection, link, handle, says_own_qdisc(&there)).await?;
    Ok(true)
}

/// Removes our filter, and the clsact if it is of our making and nobody else has a filter on it.
async fn remove(
    connection: &mut Connection,
    link: u32,
    handle: u32,
    made_qdisc: bool,
) -> Result<(), BpfError> {
    let deleted = connection.apply_one(filter::delete(link, handle)).await;
    accept_missing(deleted)
        .map_err(|source| BpfError::filter("delete the BPF filter", link, source))?;
    if !made_qdisc {
        return Ok(());
    }
    for direction in [Direction::In, Direction::Out] {
        if !list(connection, link, direction).await?.is_empty() {
            return Ok(());
        }
    }
    let deleted = connection.apply_one(filter::delete_clsact(link)).await;
    accept_missing(deleted).map_err(|source| BpfError::filter("delete clsact", link, source))
}

/// Has the kernel take the programs in both places, in a namespace that goes right after: a kernel may be without lightweight
/// tunnels or without filters that are programs.
async fn try_places(programs: &Programs) -> Result<(), BpfError> {
    let failed = |source| BpfError::Open { source };
    let namespace = match Namespace::create() {
        Ok(namespace) => namespace,
        // The places themselves will tell.
        Err(error) => {
            debug!(%error, "BPF programs were not tried");
            return Ok(());
        }
    };
    let mut connection = Connection::open(&namespace).map_err(failed)?;
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    alter_link(&mut connection, LOOPBACK, &up)
        .await
        .map_err(|source| BpfError::filter("set up a device to try", LOOPBACK, source))?;
    // For documentation, RFC 5737.
    let network = IpNetwork::V4("192.0.2.0/24".parse().expect("a network"));
    let route = state::Route::new(network, 0).through(programs.sending(), LOOPBACK);
    connection.apply_one(route.replace()).await.map_err(|source| BpfError::Route { source })?;
    let filter = filter::replace(LOOPBACK, 1, programs.receiving().as_raw_fd(), LABEL);
    for (operation, request) in
        [("create clsact", filter::create_clsact(LOOPBACK)), ("put the BPF filter", filter)]
    {
        let done = connection.apply_one(request).await;
        done.map_err(|source| BpfError::filter(operation, LOOPBACK, source))?;
    }
    Ok(())
}

/// The filter at our priority with this handle.
async fn find(
    connection: &mut Connection,
    link: u32,
    handle: u32,
) -> Result<Option<Filter>, BpfError> {
    let filters = list(connection, link, Direction::In).await?;
    let is_here = |filter: &Filter| filter.priority == filter::PRIORITY && filter.handle == handle;
    Ok(filters.into_iter().find(is_here))
}

async fn list(
    connection: &mut Connection,
    link: u32,
    direction: Direction,
) -> Result<Vec<Filter>, BpfError> {
    match connection.dump(&filter::list(link, direction), Filter::parse).await {
        // There is nothing that filters could hang on.
        Err(error) if is_without_place(&error) => Ok(Vec::new()),
        listed => listed.map_err(|source| BpfError::filter("list filters", link, source)),
    }
}

fn accept_missing(result: Result<(), KernelError>) -> Result<(), KernelError> {
    match result {
        Err(error) if is_without_place(&error) => Ok(()),
        result => result,
    }
}

/// The kernel's word for filters where no qdisc is that could have some.
fn is_without_place(error: &KernelError) -> bool {
    error.not_found() || error.errno == libc::EINVAL
}

fn is_ours(filter: &Filter) -> bool {
    filter.label.as_ref().is_some_and(|label| label.starts_with(&self::label(false)))
}

fn is_any_version_of_ours(filter: &Filter) -> bool {
    filter.label.as_ref().is_some_and(|label| label.starts_with(LABEL))
}

fn says_own_qdisc(filter: &Filter) -> bool {
    is_any_version_of_ours(filter)
        && filter.label.as_ref().is_some_and(|label| label.ends_with(OWN_QDISC))
}

/// What filters of this version are called, where the next process reads it.
fn label(made_qdisc: bool) -> String {
    format!("{LABEL}{:016x}{}", programs::version(), if made_qdisc { OWN_QDISC } else { "" })
}

const LABEL: &str = "flannel-udp ";
/// Behind the label when the clsact is of our making, so that it goes when we do.
const OWN_QDISC: &str = " own clsact";
/// The loopback device's index in every namespace.
const LOOPBACK: u32 = 1;
/// Maps that somebody altered are to be put right within a second.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// One part in so many is what reading the maps may take of the time.
const CHECK_SHARE: u32 = 1000;

#[cfg(test)]
mod tests;
