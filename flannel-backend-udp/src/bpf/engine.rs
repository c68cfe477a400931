//! What the kernel runs for us, kept as it should be.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use flannel_netlink::{Connection, Monitor, Namespace, Topic, link_by_index, state};
use ipnetwork::IpNetwork;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    alarm::Alarm,
    content::{Change, Content},
    detour::{Detour, Passage},
    error::BpfError,
    hook::Hook,
    layout::{Config, Counts, PATH_TOLD},
    paths::{Paths, Query},
    programs::Programs,
    trial::try_places,
};
use crate::{plan::Orders, stats::EbpfFeatures};

/// The programs of one network and the places where the kernel runs them, but for the route, which has an owner already.
///
/// Dropping it leaves the data path up.
#[derive(Debug)]
pub(crate) struct Engine {
    connection: Connection,
    monitor: Monitor,
    programs: Arc<Programs>,
    /// On the network card.
    hook: Hook,
    marks: Marks,
    detour: Detour,
    /// What the maps hold; `None` if they have to be read.
    content: Option<Content>,
    paths: Paths,
    /// As of the last sync: our addresses, where peers are, and what the network card takes.
    local: Vec<IpAddr>,
    peers: BTreeSet<IpAddr>,
    mtu: u32,
    /// When the programs' doings are looked at.
    alarm: Alarm,
    /// The maps are not read before then.
    next_check: Instant,
}

/// By what our objects are known, besides their names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Marks {
    /// The network's number.
    pub(super) network: u32,
    /// The tunnel device.
    pub(super) device: String,
    /// The detour device, and its local address.
    pub(super) detour: String,
    pub(super) detour_address: Ipv6Addr,
}

/// Counts what the programs do.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    programs: Arc<Programs>,
    before: Counts,
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

impl Marks {
    /// Those of a network that listens on `port`, with this tunnel device.
    pub(crate) fn new(networks: &[IpNetwork], port: u16, device: &str) -> Self {
        let (detour, detour_address) = flannel_backend::detour_device(networks, port);
        let network = flannel_backend::network_number(networks);
        Self { network, device: device.to_owned(), detour, detour_address }
    }

    /// The names of our devices.
    pub(crate) fn devices(&self) -> [String; 2] {
        [self.device.clone(), self.detour.clone()]
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
        marks: &Marks,
    ) -> Result<Self, BpfError> {
        let failed = |source| BpfError::Open { source };
        // The monitor first, so that no change falls between the listing and it.
        let monitor = Monitor::open_for(namespace, &TOPICS).map_err(failed)?;
        let mut connection = Connection::open(namespace).map_err(failed)?;
        let alarm = Alarm::new(LOOK_EVERY).map_err(|source| BpfError::Watch { source })?;
        let mut hook = Hook::new(link, port, marks);
        let ours = hook.look(&mut connection).await?;
        let programs = match ours.and_then(Programs::adopt) {
            Some(programs) => {
                info!(link, program = programs.receiving().1, "BPF programs adopted");
                programs
            }
            None => {
                let programs = Programs::load()?;
                try_places(&programs).await?;
                programs
            }
        };
        Ok(Self {
            connection,
            monitor,
            programs: Arc::new(programs),
            hook,
            marks: marks.clone(),
            detour: Detour::new(namespace, port, marks),
            content: None,
            paths: Paths::new(namespace),
            local: Vec::new(),
            peers: BTreeSet::new(),
            mtu: 0,
            alarm,
            next_check: Instant::now(),
        })
    }

    /// What the route of the network runs. The descriptor in it is open while this engine is there.
    pub(crate) fn program(&self) -> state::Program {
        self.programs.sending()
    }

    /// Makes maps and filters what `orders` ask for. `tunnel` is the index of the tunnel device.
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
        let link = link_by_index(&mut self.connection, orders.link)
            .await
            .map_err(|source| BpfError::filter("look at the network card", orders.link, source))?;
        self.mtu = link.as_ref().map_or(0, |link| link.mtu);
        self.local.clone_from(&orders.local);
        self.peers = orders.endpoints.values().map(|endpoint| endpoint.ip()).collect();
        if self.content.is_some() && self.told()? != self.paths.told() {
            self.ask_about_paths()?;
        }
        let failed = self.fill(orders, &mut changes).err();
        if self.hook.link != orders.link {
            self.hook.leave(&mut self.connection).await?;
            self.hook = Hook::new(orders.link, orders.port, &self.marks);
        }
        let has_link_header = link.is_none_or(|link| link.mac.is_some());
        let before = self.programs.config()?;
        let config = self.config(orders, tunnel, has_link_header, before);
        self.write(&config)?;
        if !self.hook.is_held() {
            let program = self.programs.receiving();
            self.hook.take(&mut self.connection, program, &mut changes).await?;
        }
        // A program of another version would send packets by the detour that this version does not know for ours.
        let detour = match config.detour {
            // There is none to put a packet's new one into.
            _ if !has_link_header => {
                if self.detour.refused().is_none() {
                    self.detour.refuse(&mut self.connection, &NO_LINK_HEADER).await;
                }
                None
            }
            was => {
                let (connection, programs) = (&mut self.connection, &self.programs);
                self.detour.ensure(connection, programs, was, &mut changes).await
            }
        };
        let config = Config { detour, ..config };
        self.write(&config)?;
        match before {
            None => changes.added += 1,
            Some(before) if before != config => changes.replaced += 1,
            Some(_) => {}
        }
        failed.map_or(Ok(changes), Err)
    }

    /// Resolves when maps or filters may not be as they were left, by somebody else's doing, or the detour or a path is not what it
    /// was.
    ///
    /// The kernel tells about filters and devices. About the rest it does not, so there is a look at it every three quarters of a
    /// second: whether packets come through the detour, whether a router has told of a path, and what stands in the maps, that less
    /// often if there is so much in them that it would take more than a five-thousandth of the time.
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
            if self.hook.is_doubtful() {
                let number = self.programs.receiving().1;
                if !self.hook.check(&mut self.connection, number).await? {
                    warn!(link = self.hook.link, "filter of the BPF program is gone");
                    return Ok(());
                }
            }
            if self.detour.is_doubtful() {
                return Ok(());
            }
            tokio::select! {
                notice = self.monitor.next() => {
                    let notice = notice.map_err(|source| BpfError::Watch { source })?;
                    let own = self.connection.port();
                    self.hook.hear(&notice, own);
                    if self.detour.hear(&notice, own) {
                        self.look_after(Duration::ZERO)?;
                    }
                }
                rung = self.alarm.rings() => {
                    rung.map_err(|source| BpfError::Watch { source })?;
                    // First, so that there is another look whatever becomes of this one.
                    self.look_after(LOOK_EVERY)?;
                    if self.is_diverted()? || self.is_altered()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// How packets are carried, as of the last sync.
    pub(crate) fn features(&self) -> EbpfFeatures {
        EbpfFeatures::new(self.detour.refused().map(str::to_owned), self.paths.narrow().len())
    }

    /// Counts packets from now on.
    pub(crate) fn meter(&self) -> Meter {
        // Programs that were adopted have counted before.
        let before = self.programs.counts().unwrap_or_default();
        Meter { programs: Arc::clone(&self.programs), before }
    }

    /// Takes the receiving program from the network card, and deletes the detour. The sending one is the route's, which goes before.
    ///
    /// # Errors
    ///
    /// [`BpfError`] if the kernel refuses.
    pub(crate) async fn teardown(mut self) -> Result<(), BpfError> {
        let left = self.hook.leave(&mut self.connection).await;
        let removed = self.detour.remove(&mut self.connection).await;
        left.map(drop).and(removed)
    }

    fn fill(&mut self, orders: &Orders, changes: &mut Changes) -> Result<(), BpfError> {
        let mut content = match self.content.take() {
            Some(content) => content,
            None => {
                let content = self.programs.content()?;
                // What an earlier process has found out about paths is not forgotten.
                if content.has_narrow() {
                    self.ask_about_paths()?;
                }
                content
            }
        };
        let mut failed = None;
        for step in content.diff(&Content::desired(&orders.endpoints, self.paths.narrow())) {
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

    /// The settings by `orders`, with the detour as it was.
    fn config(
        &self,
        orders: &Orders,
        tunnel: u32,
        has_link_header: bool,
        before: Option<Config>,
    ) -> Config {
        let address = |wants_ipv4| orders.local.iter().find(|it| it.is_ipv4() == wants_ipv4);
        Config {
            tunnel,
            send: self.programs.sending_number(),
            back: self.programs.returning().1,
            source_check: orders.source_check,
            path_mtu_discovery: orders.path_mtu_discovery,
            has_link_header,
            local4: address(true).and_then(|it| match it {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            local6: address(false).and_then(|it| match it {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(*v6),
            }),
            port: orders.port,
            detour: before.and_then(|config| config.detour),
        }
    }

    fn write(&self, config: &Config) -> Result<(), BpfError> {
        if self.programs.config()?.as_ref() != Some(config) {
            self.programs.set_config(config)?;
        }
        Ok(())
    }

    /// Whether somebody else wrote to the maps.
    fn is_altered(&mut self) -> Result<bool, BpfError> {
        let now = Instant::now();
        if now < self.next_check {
            return Ok(false);
        }
        // Of this thread alone: what others have of the processor meanwhile must not put off the next check.
        let before = processor_time();
        let actual = self.programs.content()?;
        self.next_check = now + processor_time().saturating_sub(before) * CHECK_SHARE;
        let is_altered = self.content.as_ref().is_some_and(|content| *content != actual);
        if is_altered {
            warn!("somebody else altered the BPF maps of peers");
            self.content = Some(actual);
        }
        Ok(is_altered)
    }

    /// Whether the detour is closed, or a path takes another size than before.
    fn is_diverted(&mut self) -> Result<bool, BpfError> {
        let passage = self.detour.look(&self.programs)?;
        if passage == Passage::Awaited {
            self.look_after(AWAITED)?;
        }
        Ok(self.ask_about_paths()? || passage == Passage::Closed)
    }

    fn look_after(&self, wait: Duration) -> Result<(), BpfError> {
        self.alarm.set(wait).map_err(|source| BpfError::Watch { source })
    }

    /// How often routers told something.
    fn told(&self) -> Result<u64, BpfError> {
        self.programs.count(PATH_TOLD)
    }

    /// Whether there is news.
    fn ask_about_paths(&mut self) -> Result<bool, BpfError> {
        let told = self.told()?;
        let (local, peers, mtu) = (&self.local, &self.peers, self.mtu);
        Ok(self.paths.refresh(Query { local, peers, mtu, told }))
    }
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

/// Removes the filter that an earlier process has left on `link` for this port, and the detour, for an engine that is without
/// programs: the socket is to have all datagrams. Returns whether there was a filter.
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
    marks: &Marks,
) -> Result<bool, BpfError> {
    let mut connection = Connection::open(namespace).map_err(|source| BpfError::Open { source })?;
    let left = Hook::new(link, port, marks).leave(&mut connection).await;
    let removed = Detour::new(namespace, port, marks).remove(&mut connection).await;
    left.and_then(|was_there| removed.map(|()| was_there))
}

const NO_LINK_HEADER: BpfError =
    BpfError::Detour { reason: "packets of the network card have no Ethernet header" };
/// Of devices and addresses for the detour.
const TOPICS: [Topic; 3] = [Topic::Addresses, Topic::Links, Topic::TrafficControl];
/// What nobody tells about is to be put right within a second, and each look costs a waking.
const LOOK_EVERY: Duration = Duration::from_millis(750);
/// Loopback takes microseconds, and there may be much to do.
const AWAITED: Duration = Duration::from_millis(50);
/// One part in so many is what reading the maps may take of the time.
const CHECK_SHARE: u32 = 5000;

#[cfg(test)]
mod tests;
