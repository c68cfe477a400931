//! The detour of TCP packets through the kernel's own unpacking of tunnels.
//!
//! A packet whose outer headers a program has taken away still counts as a tunnel's if it was handed over in one piece, as between
//! virtual network cards: a bridge has it cut in software. And TCP segments that come one by one are not joined. The kernel does
//! both right where it unpacks by itself, and no helper for programs does. So `flannel_receive` gives such packets VXLAN's headers
//! for outer ones and sends them by loopback to a VXLAN device, on which `flannel_return` gives them to the tunnel device.
//!
//! The device hears loopback alone: it has a link-local address there, and such a device takes packets from no other. What it
//! takes has to know an Ethernet address that nobody is told. Whether the way is open (a firewall may refuse packets by
//! loopback, IPv6 may be off) is tried with a packet before it is used, whenever the kernel tells of a change to a device on it, and
//! more often than once a second while packets come from peers, because nobody tells of a firewall; where it is not, `flannel_receive`
//! does without.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{Ipv6Addr, UdpSocket},
    time::Duration,
};

use flannel_netlink::{
    Connection, KernelError, LinkChange, Namespace, Notice, Request, Subject, alter_link,
    delete_link, link_by_index, link_by_name, push_attribute,
    state::{Link, LinkKind, Object},
};
use nix::libc;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    engine::{Changes, Marks},
    error::BpfError,
    hook::Hook,
    layout::{self, DETOUR_PROBED, RECEIVED},
    programs::Programs,
};

/// The detour of one network.
#[derive(Debug)]
pub(super) struct Detour {
    namespace: Namespace,
    /// The UDP port of the network.
    port: u16,
    marks: Marks,
    state: State,
    /// Why there is none, or was none until it was opened.
    refused: Option<String>,
}

#[derive(Debug)]
enum State {
    New,
    /// Not before then.
    Refused {
        until: Instant,
    },
    /// It was open.
    Open(Way),
}

#[derive(Debug)]
struct Way {
    hook: Hook,
    place: layout::Detour,
    /// By which the way is tried.
    socket: UdpSocket,
    /// How many packets have come through.
    count: u64,
    /// One was sent and has not.
    is_awaited: bool,
    /// How many packets of peers had been received at the last look.
    received: u64,
    /// Something on the way has changed.
    is_doubtful: bool,
}

impl Way {
    /// Sends a packet that `flannel_return` counts and drops, if the kernel takes it.
    fn send(&self, port: u16) -> bool {
        self.socket.send(&probe(port.into(), self.place.mac)).is_ok()
    }

    /// Whether packets have come through since this was asked.
    fn has_more(&mut self, programs: &Programs) -> Result<bool, BpfError> {
        let before = std::mem::replace(&mut self.count, programs.count(DETOUR_PROBED)?);
        Ok(self.count != before)
    }
}

/// Whether packets come through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Passage {
    /// To be looked at again soon.
    Awaited,
    /// They do not.
    Closed,
    /// They do, or there is no detour.
    Open,
}

impl Detour {
    pub(super) fn new(namespace: &Namespace, port: u16, marks: &Marks) -> Self {
        let (namespace, marks) = (namespace.clone(), marks.clone());
        Self { namespace, port, marks, state: State::New, refused: None }
    }

    /// Makes the device and its filter, or takes over what is there, and returns what the programs have to know. What is right
    /// is not touched. `was` is what they know.
    ///
    /// `None` if there is no detour here; the reason is logged.
    pub(super) async fn ensure(
        &mut self,
        connection: &mut Connection,
        programs: &Programs,
        was: Option<layout::Detour>,
        changes: &mut Changes,
    ) -> Option<layout::Detour> {
        match &self.state {
            State::Open(way) if way.hook.is_held() => return Some(way.place),
            State::Refused { until } if Instant::now() < *until => return None,
            _ => {}
        }
        match self.open(connection, programs, was, changes).await {
            Ok(way) => {
                let place = way.place;
                self.state = State::Open(way);
                Some(place)
            }
            Err(error) => {
                self.refuse(connection, &error).await;
                None
            }
        }
    }

    /// Why there is none; `None` if there is one.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref().filter(|_| !matches!(self.state, State::Open(_)))
    }

    /// There is none for the next while.
    pub(super) async fn refuse(&mut self, connection: &mut Connection, error: &BpfError) {
        let reason = std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        if self.refused.replace(reason.clone()).is_some() {
            debug!(reason, "no detour");
        } else {
            warn!(reason, "TCP packets from peers take no detour: they are slower behind a bridge");
        }
        self.state = State::Refused { until: Instant::now() + AGAIN_AFTER };
        if let Err(error) = self.remove(connection).await {
            debug!(%error, "the detour's device is left");
        }
    }

    /// Sends a packet by the detour, and looks whether it has come through, or the one before it. Where nothing has come from peers
    /// and nothing was heard, nobody needs to know.
    pub(super) fn look(&mut self, programs: &Programs) -> Result<Passage, BpfError> {
        let State::Open(way) = &mut self.state else {
            return Ok(Passage::Open);
        };
        let received = programs.count(RECEIVED)?;
        let was_received = std::mem::replace(&mut way.received, received);
        let is_doubtful = std::mem::take(&mut way.is_doubtful);
        if received == was_received && !is_doubtful && !way.is_awaited {
            return Ok(Passage::Open);
        }
        if way.is_awaited {
            way.is_awaited = !way.has_more(programs)?;
        }
        if way.is_awaited || !way.send(self.port) {
            self.state = State::New;
            return Ok(Passage::Closed);
        }
        way.is_awaited = !way.has_more(programs)?;
        Ok(if way.is_awaited { Passage::Awaited } else { Passage::Open })
    }

    /// Doubts what is known if `notice` is about the filter, and returns whether it is about something else on the way, so that a
    /// [`look`](Self::look) is due.
    pub(super) fn hear(&mut self, notice: &Notice, own_port: u32) -> bool {
        let State::Open(way) = &mut self.state else {
            return false;
        };
        way.hook.hear(notice, own_port);
        let is_about = match notice {
            Notice::Added { subject, .. } | Notice::Removed { subject, .. } => match subject {
                Subject::Link(link) => [LOOPBACK, way.hook.link].contains(&link.index),
                Subject::Object(Object::Address(address)) => address.link == LOOPBACK,
                _ => false,
            },
            notice => *notice == Notice::Lost,
        };
        way.is_doubtful |= is_about;
        is_about
    }

    pub(super) fn is_doubtful(&self) -> bool {
        matches!(&self.state, State::Open(way) if way.hook.is_doubtful())
    }

    /// Deletes the device, if it is ours.
    pub(super) async fn remove(&self, connection: &mut Connection) -> Result<(), BpfError> {
        let there = link_by_name(connection, &self.marks.detour).await;
        let there = there.map_err(|source| device("look at the detour device", source))?;
        match there {
            Some(link) if self.is_ours(&link) => delete_link(connection, link.index)
                .await
                .map_err(|source| device("delete the detour device", source)),
            _ => Ok(()),
        }
    }

    async fn open(
        &self,
        connection: &mut Connection,
        programs: &Programs,
        was: Option<layout::Detour>,
        changes: &mut Changes,
    ) -> Result<Way, BpfError> {
        if !kernel_is_new_enough() {
            return Err(BpfError::Detour { reason: "it needs Linux 5.12" });
        }
        let there = link_by_name(connection, &self.marks.detour)
            .await
            .map_err(|source| device("look at the detour device", source))?;
        let (link, udp_port) = match there.as_ref().map(|link| (link, udp_port(link))) {
            Some((link, Some(udp_port))) if self.is_ours(link) && link.up => {
                (link.clone(), udp_port)
            }
            Some((link, _)) if !self.is_ours(link) => {
                return Err(BpfError::Detour { reason: "somebody else's device has its name" });
            }
            _ => {
                self.remove(connection).await?;
                let made = self.create(connection).await?;
                changes.added += 1;
                made
            }
        };
        let mut hook = Hook::new(link.index, self.port, &self.marks);
        hook.look(connection).await?;
        hook.take(connection, programs.returning(), changes).await?;
        let mac = was.map_or_else(secret, |was| was.mac);
        let place = layout::Detour { is_open: true, port: udp_port, mac };
        if was != Some(place) {
            // The program has to know the address before it lets a packet through.
            let mut config =
                programs.config()?.ok_or(BpfError::Detour { reason: "no settings" })?;
            config.detour = Some(layout::Detour { is_open: false, ..place });
            programs.set_config(&config)?;
        }
        let closed = BpfError::Detour { reason: "packets by loopback do not arrive" };
        let Ok(Ok(socket)) = self.namespace.run(|| socket(udp_port)) else {
            return Err(closed);
        };
        let count = programs.count(DETOUR_PROBED)?;
        let mut way =
            Way { hook, place, socket, count, is_awaited: false, received: 0, is_doubtful: false };
        let deadline = Instant::now() + ARRIVES;
        let is_sent = way.send(self.port);
        while !way.has_more(programs)? {
            if !is_sent || Instant::now() > deadline {
                return Err(closed);
            }
            sleep(Duration::from_millis(1)).await;
        }
        info!(device = link.name, port = udp_port, "TCP packets of peers take a detour");
        Ok(way)
    }

    /// Makes the device on the first free port behind the network's.
    async fn create(&self, connection: &mut Connection) -> Result<(Link, u16), BpfError> {
        let mut refused = None;
        for port in (1..=PORTS).filter_map(|n| self.port.checked_add(n)) {
            let made = self.create_on(connection, port).await;
            match made {
                Ok(link) => return Ok((link, port)),
                Err(error) => {
                    let is_taken = error.errno == libc::EADDRINUSE;
                    refused = Some(error);
                    if !is_taken {
                        break;
                    }
                }
            }
            self.remove(connection).await?;
        }
        Err(refused.map_or(BpfError::Detour { reason: "there is no port for it" }, |source| {
            device("make the detour device", source)
        }))
    }

    async fn create_on(&self, connection: &mut Connection, port: u16) -> Result<Link, KernelError> {
        let (name, local) = (&self.marks.detour, self.marks.detour_address);
        connection.apply_one(create(name, self.port.into(), local, port)).await?;
        let gone = || KernelError::new(libc::ENODEV);
        let link = link_by_name(connection, name).await?.ok_or_else(gone)?;
        // In this order: a device that is up would have a link-local address at once.
        for change in [
            LinkChange { no_link_local: true, ..LinkChange::default() },
            LinkChange { up: Some(true), ..LinkChange::default() },
        ] {
            alter_link(connection, link.index, &change).await?;
        }
        link_by_index(connection, link.index).await?.ok_or_else(gone)
    }

    fn is_ours(&self, link: &Link) -> bool {
        matches!(&link.kind, LinkKind::Vxlan(vxlan)
            if vxlan.vni == u32::from(self.port) && vxlan.local == Some(self.marks.detour_address.into()))
    }
}

/// The request for a VXLAN device that hears loopback alone. It takes datagrams without checksum, as the programs send them.
fn create(name: &str, vni: u32, local: Ipv6Addr, port: u16) -> Request {
    let mut data = Vec::new();
    push_attribute(&mut data, IFLA_VXLAN_ID, &vni.to_ne_bytes());
    push_attribute(&mut data, IFLA_VXLAN_LINK, &LOOPBACK.to_ne_bytes());
    push_attribute(&mut data, IFLA_VXLAN_LOCAL6, &local.octets());
    push_attribute(&mut data, IFLA_VXLAN_PORT, &port.to_be_bytes());
    push_attribute(&mut data, IFLA_VXLAN_LEARNING, &[0]);
    push_attribute(&mut data, IFLA_VXLAN_UDP_ZERO_CSUM6_RX, &[1]);
    let mut info = Vec::new();
    push_attribute(&mut info, IFLA_INFO_KIND, b"vxlan");
    push_attribute(&mut info, IFLA_INFO_DATA | NLA_F_NESTED, &data);
    let mut body = vec![0; IFINFOMSG_BYTES];
    push_attribute(&mut body, IFLA_IFNAME, format!("{name}\0").as_bytes());
    push_attribute(&mut body, IFLA_LINKINFO | NLA_F_NESTED, &info);
    Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
}

fn socket(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
    socket.connect((Ipv6Addr::LOCALHOST, port))?;
    Ok(socket)
}

/// What `flannel_return` counts and drops.
fn probe(vni: u32, mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![HAS_VNI, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend(mac);
    packet.extend([2, 0, 0, 0, 0, 0]);
    packet.extend(ETH_PROBE.to_be_bytes());
    packet.extend([0; 32]);
    packet
}

/// An Ethernet address that nobody can guess: of one station, and of no vendor's.
fn secret() -> [u8; 6] {
    let bytes = RandomState::new().build_hasher().finish().to_ne_bytes();
    [bytes[0] & 0xfc | 2, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
}

fn udp_port(link: &Link) -> Option<u16> {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.port,
        _ => None,
    }
}

/// Older kernels let programs add nothing to a packet as large as the network card takes.
fn kernel_is_new_enough() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    is_since_5_12(&release)
}

fn is_since_5_12(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 12))
}

fn device(operation: &'static str, source: KernelError) -> BpfError {
    BpfError::Device { operation, source }
}

/// The loopback device's index in every namespace.
pub(super) const LOOPBACK: u32 = 1;
/// How many ports are tried.
const PORTS: u16 = 8;
/// What a firewall refuses now it will mostly refuse later.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Loopback takes microseconds.
const ARRIVES: Duration = Duration::from_millis(50);
/// The flag of VXLAN that is always set, in the first byte.
const HAS_VNI: u8 = 0x08;
/// As in udp.bpf.c.
const ETH_PROBE: u16 = 0x88b5;

const IFINFOMSG_BYTES: usize = 16;
// linux/netlink.h
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 0x8000;
// linux/rtnetlink.h, linux/if_link.h
const RTM_NEWLINK: u16 = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_a_vxlan_device_on_loopback() {
        let local: Ipv6Addr = "fe80::8a3f:1".parse().unwrap();
        let request = create("flannel-in8285", 8285, local, 8286);
        let link = Link::parse(&request.message().unwrap()).unwrap();
        let LinkKind::Vxlan(vxlan) = link.kind else { panic!("{link:?}") };
        assert_eq!(
            (link.name.as_str(), vxlan.vni, vxlan.port),
            ("flannel-in8285", 8285, Some(8286))
        );
        assert_eq!((vxlan.local, vxlan.parent), (Some(local.into()), Some(LOOPBACK)));
    }

    #[test]
    fn secrets_differ_and_are_addresses_of_stations() {
        let (one, other) = (secret(), secret());
        assert_ne!(one, other);
        assert_eq!((one[0] & 3, other[0] & 3), (2, 2));
    }

    #[test]
    fn kernels_are_told_by_their_release() {
        for (release, is_enough) in [
            ("6.18.44-fc-v595", true),
            ("5.12.0", true),
            ("5.11.22", false),
            ("4.19.0-27-amd64", false),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_since_5_12(release), is_enough, "{release}");
        }
    }
}
