//! Devices and peers as messages from and to the kernel.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    ops::Range,
    time::Duration,
};

use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

use super::{Device, Peer, PeerChange, PeerConfig, PublicKey, SecretKey};
use crate::{
    Attribute, Message, Request,
    generic::{HEADER, header},
    wire::{push_attribute, push_ip, push_nested, u32_at},
};

pub(super) fn get_device(family: u16, link: u32) -> Request {
    let mut body = Vec::new();
    push_command(&mut body, WG_CMD_GET_DEVICE, link);
    Request::new(family, 0, &body)
}

pub(super) fn set_device(family: u16, link: u32, key: &SecretKey, port: u16) -> Request {
    let mut body = Zeroizing::new(Vec::with_capacity(ROOM));
    push_command(&mut body, WG_CMD_SET_DEVICE, link);
    push_attribute(&mut body, WGDEVICE_A_PRIVATE_KEY, key.bytes());
    push_attribute(&mut body, WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
    Request::new(family, 0, &body)
}

/// One message.
pub(super) struct Batch {
    pub(super) request: Request,
    /// The numbers of the changes that are in it, as a whole or in part.
    pub(super) changes: Range<usize>,
}

/// As many changes in one message as fit.
pub(super) fn set_peers(
    family: u16,
    link: u32,
    changes: &[PeerChange],
) -> impl Iterator<Item = Batch> {
    let parts = |(number, change)| parts(change).map(move |part| (number, part));
    let mut parts = changes.iter().enumerate().flat_map(parts).peekable();
    std::iter::from_fn(move || {
        let first = parts.peek()?.0;
        let mut last = first;
        // No byte of a key is left behind in a smaller buffer.
        let mut body = Zeroizing::new(Vec::with_capacity(MESSAGE_BYTES + ROOM));
        push_command(&mut body, WG_CMD_SET_DEVICE, link);
        push_nested(&mut body, WGDEVICE_A_PEERS, |out| {
            while out.len() < MESSAGE_BYTES
                && let Some((number, part)) = parts.next()
            {
                last = number;
                push_nested(out, 0, |out| push_part(out, &part));
            }
        });
        Some(Batch { request: Request::new(family, 0, &body), changes: first..last + 1 })
    })
}

/// What one message says about a peer.
enum Part<'a> {
    Remove(&'a PublicKey),
    /// All but the allowed IPs that are more than one message takes.
    Set(&'a PeerConfig),
    /// More of the allowed IPs, from this number on.
    More(&'a PeerConfig, usize),
}

fn parts(change: &PeerChange) -> impl Iterator<Item = Part<'_>> {
    let (first, more) = match change {
        PeerChange::Remove(key) => (Part::Remove(key), None),
        PeerChange::Set(config) => (Part::Set(config), Some(config)),
    };
    let more = more.into_iter().flat_map(|config| {
        let starts = (ALLOWED_IPS..config.allowed_ips.len()).step_by(ALLOWED_IPS);
        starts.map(move |start| Part::More(config, start))
    });
    std::iter::once(first).chain(more)
}

fn push_part(out: &mut Vec<u8>, part: &Part<'_>) {
    let (config, start) = match part {
        Part::Remove(key) => {
            push_attribute(out, WGPEER_A_PUBLIC_KEY, key.bytes());
            push_attribute(out, WGPEER_A_FLAGS, &WGPEER_F_REMOVE_ME.to_ne_bytes());
            return;
        }
        Part::Set(config) => (config, 0),
        Part::More(config, start) => (config, *start),
    };
    push_attribute(out, WGPEER_A_PUBLIC_KEY, config.key.bytes());
    if start == 0 {
        push_attribute(out, WGPEER_A_FLAGS, &WGPEER_F_REPLACE_ALLOWEDIPS.to_ne_bytes());
        let preshared_key = config.preshared_key.as_ref().map_or(&[0; 32], SecretKey::bytes);
        push_attribute(out, WGPEER_A_PRESHARED_KEY, preshared_key);
        if let Some(endpoint) = config.endpoint {
            push_attribute(out, WGPEER_A_ENDPOINT, &sockaddr(endpoint));
        }
        let keepalive = config.keepalive.to_ne_bytes();
        push_attribute(out, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &keepalive);
    } else {
        // If the first part was refused, this one must not add the peer without its preshared key.
        push_attribute(out, WGPEER_A_FLAGS, &WGPEER_F_UPDATE_ONLY.to_ne_bytes());
    }
    push_nested(out, WGPEER_A_ALLOWEDIPS, |out| {
        for allowed in config.allowed_ips.iter().skip(start).take(ALLOWED_IPS) {
            push_nested(out, 0, |out| push_allowed(out, allowed));
        }
    });
}

fn push_allowed(out: &mut Vec<u8>, allowed: &IpNetwork) {
    let family = if allowed.is_ipv4() { AF_INET } else { AF_INET6 };
    push_attribute(out, WGALLOWEDIP_A_FAMILY, &family.to_ne_bytes());
    push_ip(out, WGALLOWEDIP_A_IPADDR, allowed.ip());
    push_attribute(out, WGALLOWEDIP_A_CIDR_MASK, &[allowed.prefix()]);
}

/// Takes in one of the messages that show a device. A peer with many allowed IPs continues in the next one.
pub(super) fn fold(device: &mut Device, message: &Message<'_>) {
    let Some((_, attributes)) = message.split(HEADER) else { return };
    for attribute in attributes {
        match attribute.kind {
            WGDEVICE_A_PRIVATE_KEY => device.private_key = SecretKey::of_kernel(attribute.value),
            WGDEVICE_A_PUBLIC_KEY => device.public_key = public_key(&attribute),
            WGDEVICE_A_LISTEN_PORT => device.listen_port = attribute.u16().unwrap_or_default(),
            WGDEVICE_A_PEERS => {
                for peer in attribute.nested().filter_map(|it| peer(&it)) {
                    match device.peers.last_mut() {
                        Some(last) if last.config.key == peer.config.key => {
                            last.config.allowed_ips.extend(peer.config.allowed_ips);
                        }
                        _ => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
}

fn peer(attributes: &Attribute<'_>) -> Option<Peer> {
    let key = attributes.nested().find(|it| it.kind == WGPEER_A_PUBLIC_KEY)?;
    let mut config = PeerConfig {
        key: public_key(&key)?,
        preshared_key: None,
        endpoint: None,
        keepalive: 0,
        allowed_ips: BTreeSet::new(),
    };
    let (mut last_handshake, mut sent) = (None, 0);
    for attribute in attributes.nested() {
        match attribute.kind {
            WGPEER_A_PRESHARED_KEY => config.preshared_key = SecretKey::of_kernel(attribute.value),
            WGPEER_A_ENDPOINT => config.endpoint = endpoint(attribute.value),
            WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL => {
                config.keepalive = attribute.u16().unwrap_or_default()
            }
            WGPEER_A_LAST_HANDSHAKE_TIME => last_handshake = time(attribute.value),
            WGPEER_A_TX_BYTES => sent = u64_at(attribute.value, 0).unwrap_or_default(),
            WGPEER_A_ALLOWEDIPS => {
                config.allowed_ips.extend(attribute.nested().filter_map(|it| allowed(&it)))
            }
            _ => {}
        }
    }
    Some(Peer { config, last_handshake, sent })
}

fn public_key(attribute: &Attribute<'_>) -> Option<PublicKey> {
    let bytes = <[u8; 32]>::try_from(attribute.value).ok()?;
    (bytes != [0; 32]).then(|| PublicKey::new(bytes))
}

fn allowed(attributes: &Attribute<'_>) -> Option<IpNetwork> {
    let find = |kind| attributes.nested().find(|it| it.kind == kind);
    let prefix = find(WGALLOWEDIP_A_CIDR_MASK)?.u8()?;
    IpNetwork::new(find(WGALLOWEDIP_A_IPADDR)?.ip()?, prefix).ok()
}

/// Reads a `struct __kernel_timespec`.
fn time(bytes: &[u8]) -> Option<Duration> {
    let nanoseconds = u32::try_from(u64_at(bytes, 8)?).ok().filter(|it| *it < 1_000_000_000)?;
    let time = Duration::new(u64_at(bytes, 0)?, nanoseconds);
    (!time.is_zero()).then_some(time)
}

/// A `struct sockaddr_in` or `struct sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => {
            [&AF_INET.to_ne_bytes()[..], &port, &v4.ip().octets(), &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let (flow, scope) = (v6.flowinfo().to_ne_bytes(), v6.scope_id().to_ne_bytes());
            [&AF_INET6.to_ne_bytes()[..], &port, &flow, &v6.ip().octets(), &scope].concat()
        }
    }
}

fn endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family {
        AF_INET => Some((*bytes.get(4..)?.first_chunk::<4>()?, port).into()),
        AF_INET6 => {
            let ip = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
            let (flow, scope) = (u32_at(bytes, 4)?, u32_at(bytes, 24)?);
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        }
        _ => None,
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn push_command(out: &mut Vec<u8>, command: u8, link: u32) {
    out.extend(header(command, WG_GENL_VERSION));
    push_attribute(out, WGDEVICE_A_IFINDEX, &link.to_ne_bytes());
}

/// A message of so many bytes takes no more peers: with another one it stays below the 32 KiB of a datagram, and below the 64 KiB
/// of an attribute.
const MESSAGE_BYTES: usize = 16 << 10;
/// How many allowed IPs of one peer a message takes, at 40 bytes each.
const ALLOWED_IPS: usize = 256;
/// More than one peer takes.
const ROOM: usize = 12 << 10;

// linux/wireguard.h
const WG_GENL_VERSION: u8 = 1;
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_PUBLIC_KEY: u16 = 4;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGPEER_F_UPDATE_ONLY: u32 = 4;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL: u16 = 5;
const WGPEER_A_LAST_HANDSHAKE_TIME: u16 = 6;
const WGPEER_A_TX_BYTES: u16 = 8;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
// linux/socket.h
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cfg(test)]
mod messages_tests;
