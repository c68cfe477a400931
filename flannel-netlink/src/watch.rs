//! What the kernel tells about changes, whoever made them.

mod socket_filter;

use std::{collections::VecDeque, future::Future, io};

use nix::libc;

use crate::{
    Message, Namespace, OpenError,
    socket::{KernelSocket, Protocol},
    state::{ForwardingEntry, Link, Object},
    wire::{messages, u32_at},
};

/// A socket that hears of changes of links, addresses, routes, neighbours, forwarding entries and
/// nexthop objects in one namespace.
///
/// The kernel queues a notification before it acknowledges the request that caused it. What the
/// kernel does as a consequence it does not always tell: IPv4 routes that go with a device, an
/// address or a nexthop object go silently.
#[derive(Debug)]
pub struct Monitor {
    socket: KernelSocket,
    waiting: VecDeque<Notice>,
}

impl Monitor {
    /// Opens a monitor in `namespace` that hears of everything but traffic control. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the namespace cannot be entered or the socket cannot be made.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        Self::open_for(namespace, &Topic::ALL)
    }

    /// Opens a monitor in `namespace` that hears of these topics only: others cost no time and do
    /// not wake anybody. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_for(namespace: &Namespace, topics: &[Topic]) -> Result<Self, OpenError> {
        let socket = KernelSocket::open(namespace, Protocol::Route, QUEUE_BYTES)?;
        let failed = |source| OpenError::Socket { source };
        if !topics.contains(&Topic::Routes) {
            socket.attach_filter(&socket_filter::default_routes_only()).map_err(failed)?;
        }
        for group in topics.iter().flat_map(Topic::groups) {
            match socket.options().add_membership(*group) {
                // A kernel without nexthop objects has no such group.
                Err(error)
                    if *group == RTNLGRP_NEXTHOP && error.raw_os_error() == Some(libc::EINVAL) => {}
                result => result.map_err(failed)?,
            }
        }
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// Hears no more of routes, neighbours, forwarding entries and nexthop objects that `port` changes from now on. Of links and
    /// addresses it does, because the kernel changes more along with them.
    pub(crate) fn ignore(&self, port: u32) -> Result<(), OpenError> {
        self.socket
            .attach_filter(&socket_filter::changes_of_others(port))
            .map_err(|source| OpenError::Socket { source })
    }

    /// How many notifications of our own making are safe to have waiting.
    pub(crate) fn room(&self) -> usize {
        // Half of the queue, so that changes of others fit as well.
        (self.socket.receive_bytes() / 2 / NOTICE_TRUESIZE).max(1)
    }

    /// The next notification.
    ///
    /// # Errors
    ///
    /// When the socket cannot be read. Lost notifications are not an error but [`Notice::Lost`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> io::Result<Notice> {
        loop {
            if let Some(notice) = self.waiting.pop_front() {
                return Ok(notice);
            }
            match self.socket.receive().await {
                Ok(datagram) => {
                    self.waiting.extend(messages(datagram).map(|message| Notice::of(&message)))
                }
                Err(error) if lost(&error) => return Ok(Notice::Lost),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next notification that is there already.
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    pub fn next_waiting(&mut self) -> io::Result<Option<Notice>> {
        loop {
            if let Some(notice) = self.waiting.pop_front() {
                return Ok(Some(notice));
            }
            match self.socket.receive_waiting() {
                Ok(Some(datagram)) => {
                    self.waiting.extend(messages(datagram).map(|message| Notice::of(&message)));
                }
                Ok(None) => return Ok(None),
                Err(error) if lost(&error) => return Ok(Some(Notice::Lost)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Awaits `work` and says what was changed meanwhile, by whomever. For tests such as "a second
    /// sync writes nothing".
    ///
    /// Changes that are queued but not read before the call do not count. If more changes come than
    /// the queue holds, the rest is one [`Notice::Lost`].
    ///
    /// # Errors
    ///
    /// As [`next`](Self::next).
    ///
    /// # Cancel safety
    ///
    /// As `work`.
    pub async fn during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> io::Result<(T, Vec<Notice>)> {
        while self.next_waiting()?.is_some() {}
        let value = work.await;
        let mut seen = Vec::new();
        while let Some(notice) = self.next_waiting()? {
            seen.push(notice);
        }
        Ok((value, seen))
    }
}

/// What a [`Monitor`] may hear of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Topic {
    /// IPv4 and IPv6 addresses.
    Addresses,
    /// Routes to everywhere, `0.0.0.0/0` and `::/0`.
    DefaultRoutes,
    /// Devices.
    Links,
    /// Neighbours and forwarding entries.
    Neighbours,
    /// Settings of devices under `/proc/sys/net`, such as forwarding.
    Netconf,
    /// Nexthop objects.
    Nexthops,
    /// All IPv4 and IPv6 routes.
    Routes,
    /// Routing policy rules.
    Rules,
    /// Queueing disciplines and filters.
    TrafficControl,
}

impl Topic {
    /// Everything but traffic control.
    const ALL: [Self; 5] =
        [Self::Addresses, Self::Links, Self::Neighbours, Self::Nexthops, Self::Routes];

    /// The multicast groups, of linux/rtnetlink.h.
    const fn groups(&self) -> &'static [u32] {
        match self {
            Self::Addresses => &[5, 9],
            Self::DefaultRoutes | Self::Routes => &[7, 11],
            Self::Links => &[1],
            Self::Neighbours => &[3],
            Self::Netconf => &[24, 25],
            Self::Nexthops => &[RTNLGRP_NEXTHOP],
            Self::Rules => &[8, 19],
            Self::TrafficControl => &[4],
        }
    }
}

/// One notification.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// Something is there now, or is different now.
    Added {
        /// What.
        subject: Subject,
        /// Whether it took the place of the first with the same key.
        replaces: bool,
        /// The netlink port of who asked for it; 0 for the kernel itself and where the kernel does
        /// not say. Often it is the process number.
        port: u32,
    },
    /// Notifications were lost because they came faster than they were read. Only a listing helps.
    Lost,
    /// Something is gone.
    Removed {
        /// What, as it was last.
        subject: Subject,
        /// As for `Added`.
        port: u32,
    },
}

/// What a notification is about.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Subject {
    /// A device.
    Link(Link),
    /// An object.
    Object(Object),
    /// Settings of the device with this index, or of several.
    Netconf(u32),
    /// A kind that this crate does not read, such as a nexthop group, by its message type.
    Other(u16),
    /// A routing policy rule.
    Rule,
    /// A queueing discipline or a filter on the device with this index.
    TrafficControl(u32),
}

impl Notice {
    fn of(message: &Message<'_>) -> Self {
        let subject = match (Object::parse(message), Link::parse(message)) {
            (Some(Object::ForwardingEntry(_)), _) if !ForwardingEntry::is_of_device(message) => {
                Subject::Other(message.kind)
            }
            (Some(object), _) => Subject::Object(object),
            (None, Some(link)) => Subject::Link(link),
            (None, None) => match u32_at(message.body, 4) {
                // `tcm_ifindex` in `struct tcmsg`.
                Some(link) if TRAFFIC_CONTROL.contains(&message.kind) => {
                    Subject::TrafficControl(link)
                }
                _ => match message.kind {
                    RTM_NEWNETCONF | RTM_DELNETCONF => Subject::Netconf(netconf_link(message)),
                    RTM_NEWRULE | RTM_DELRULE => Subject::Rule,
                    kind => Subject::Other(kind),
                },
            },
        };
        let port = message.port;
        // New, delete, get, set: in blocks of four.
        if message.kind % 4 == 1 {
            Self::Removed { subject, port }
        } else {
            let replaces = message.flags & libc::NLM_F_REPLACE as u16 != 0;
            Self::Added { subject, replaces, port }
        }
    }
}

/// The device that a message about settings concerns; some settings concern all devices, which have no index of their own.
fn netconf_link(message: &Message<'_>) -> u32 {
    let attributes = message.split(NETCONF_HEADER).into_iter().flat_map(|(_, it)| it);
    let mut links = attributes.filter(|it| it.kind == NETCONFA_IFINDEX);
    links.find_map(|link| link.u32()).unwrap_or(0)
}

fn lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS)
}

/// What we ask as queue: some thousands of notifications.
const QUEUE_BYTES: usize = 4 << 20;
/// What one notification costs of the queue, rounded up: the kernel counts its own bookkeeping in.
const NOTICE_TRUESIZE: usize = 2048;

// linux/rtnetlink.h
const RTNLGRP_NEXTHOP: u32 = 32;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
/// The size of `struct netconfmsg`, padded.
const NETCONF_HEADER: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
/// From `RTM_NEWQDISC` to `RTM_GETTFILTER`.
const TRAFFIC_CONTROL: std::ops::RangeInclusive<u16> = 36..=46;

#[cfg(test)]
mod watch_tests;
