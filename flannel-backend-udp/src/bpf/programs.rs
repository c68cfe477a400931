//! The programs and their maps, loaded into the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, RawFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, Map, MapData, MapError, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::SchedClassifier,
};
use ipnetwork::IpNetwork;

use super::{
    error::BpfError,
    layout::{self, Config, Endpoint, Peer},
};
use crate::{peer_stats::PeerStats, verdict::DropReason};

/// Loaded programs, each with its number.
pub(super) struct Programs {
    pub(super) encap: (RawFd, u32),
    pub(super) decap: (RawFd, u32),
    /// Owns the descriptors.
    _object: Ebpf,
}

/// The maps, and what they hold: nobody else writes to them.
pub(super) struct Maps {
    endpoints: LpmTrie<MapData, [u8; 16], Endpoint>,
    peers: LpmTrie<MapData, [u8; 16], Peer>,
    config: Array<MapData, [u8; 32]>,
    unknown: PerCpuArray<MapData, [u8; 16]>,
    written: BTreeMap<IpNetwork, Endpoint>,
    known: BTreeSet<IpAddr>,
    written_config: Option<Config>,
    /// Of peers that are no more.
    past: PeerStats,
}

/// What became of packets that programs saw.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    /// Those of peers that there are or were, and of anybody else.
    pub(crate) all: PeerStats,
    pub(crate) peers: BTreeMap<IpAddr, PeerStats>,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    pub(crate) added: u64,
    pub(crate) replaced: u64,
    pub(crate) removed: u64,
}

/// Loads the programs with new, empty maps.
///
/// # Errors
///
/// [`BpfError`] if the kernel refuses.
pub(super) fn load() -> Result<(Programs, Maps), BpfError> {
    let mut object =
        EbpfLoader::new().load(OBJECT).map_err(|error| BpfError::load("udp.bpf.o", &error))?;
    let encap = load_program(&mut object, ENCAP)?;
    let decap = load_program(&mut object, DECAP)?;
    let failed = |error: MapError| BpfError::load("udp.bpf.o", &error);
    let mut map = |name: &str| -> Map { object.take_map(name).expect("the object has the map") };
    let maps = Maps {
        endpoints: map("endpoints").try_into().map_err(failed)?,
        peers: map("peers").try_into().map_err(failed)?,
        config: map("config").try_into().map_err(failed)?,
        unknown: map("unknown").try_into().map_err(failed)?,
        written: BTreeMap::new(),
        known: BTreeSet::new(),
        written_config: None,
        past: PeerStats::default(),
    };
    Ok((Programs { encap, decap, _object: object }, maps))
}

/// Loads the programs, and removes them again.
///
/// # Errors
///
/// [`BpfError`] if the kernel refuses.
pub(crate) fn try_load() -> Result<(), BpfError> {
    load().map(drop)
}

fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(RawFd, u32), BpfError> {
    let program = object.program_mut(name).expect("the object has the program");
    let failed = |error: aya::programs::ProgramError| BpfError::load(name, &error);
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    let id = program.info().map_err(failed)?.id();
    Ok((program.fd().map_err(failed)?.as_fd().as_raw_fd(), id))
}

impl Maps {
    /// Writes what differs. A peer is known before it has blocks and until it has none, so that no packet of it counts as an unknown
    /// one's.
    pub(super) fn fill(
        &mut self,
        endpoints: &BTreeMap<IpNetwork, SocketAddr>,
        in_kernel: &BTreeSet<IpAddr>,
        changes: &mut Changes,
    ) -> Result<(), BpfError> {
        let failed = |map: &'static str| move |source| BpfError::Map { map, source };
        // A block whose endpoint is of the other family takes the userspace engine.
        let same_family = |block: &IpNetwork, at: &SocketAddr| block.is_ipv4() == at.is_ipv4();
        let desired: BTreeMap<IpNetwork, Endpoint> = endpoints
            .iter()
            .filter(|(block, at)| same_family(block, at))
            .map(|(block, at)| (*block, layout::endpoint(*at, in_kernel.contains(&at.ip()))))
            .collect();
        let known: BTreeSet<IpAddr> = endpoints.values().map(SocketAddr::ip).collect();
        for ip in known.difference(&self.known.clone()) {
            self.peers.insert(&whole(*ip), [0; 64], 0).map_err(failed("peers"))?;
            self.known.insert(*ip);
        }
        for (block, endpoint) in &desired {
            let count = match self.written.get(block) {
                Some(there) if there == endpoint => continue,
                Some(_) => &mut changes.replaced,
                None => &mut changes.added,
            };
            self.endpoints.insert(&key(*block), endpoint, 0).map_err(failed("endpoints"))?;
            self.written.insert(*block, *endpoint);
            *count += 1;
        }
        let gone: Vec<_> =
            self.written.keys().filter(|it| !desired.contains_key(it)).copied().collect();
        for block in gone {
            self.endpoints.remove(&key(block)).map_err(failed("endpoints"))?;
            self.written.remove(&block);
            changes.removed += 1;
        }
        for ip in self.known.clone().difference(&known) {
            if let Ok(peer) = self.peers.get(&whole(*ip), 0) {
                self.past.add(&peer_stats(&peer));
            }
            self.peers.remove(&whole(*ip)).map_err(failed("peers"))?;
            self.known.remove(ip);
        }
        Ok(())
    }

    /// Writes the settings if they differ.
    pub(super) fn configure(
        &mut self,
        config: Config,
        changes: &mut Changes,
    ) -> Result<(), BpfError> {
        if self.written_config == Some(config) {
            return Ok(());
        }
        let set = self.config.set(0, config.bytes(), 0);
        set.map_err(|source| BpfError::Map { map: "config", source })?;
        match self.written_config.replace(config) {
            Some(_) => changes.replaced += 1,
            // What the first sync loads is no change: until then the kernel does not use it.
            None => *changes = Changes::default(),
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { all: self.past.clone(), peers: BTreeMap::new() };
        for ip in &self.known {
            if let Ok(peer) = self.peers.get(&whole(*ip), 0) {
                let peer = peer_stats(&peer);
                counts.all.add(&peer);
                counts.peers.insert(*ip, peer);
            }
        }
        if let (Ok(dropped), Ok(received)) = (self.unknown.get(&0, 0), self.unknown.get(&1, 0)) {
            let sum = |values: &[[u8; 16]], at| values.iter().map(|it| number(it, at)).sum::<u64>();
            counts.all.packets_received += sum(&received, 0);
            counts.all.bytes_received += sum(&received, 8);
            *counts.all.dropped_inbound.entry(DropReason::UnknownPeer).or_default() +=
                sum(&dropped, 0);
        }
        counts
    }
}

fn peer_stats(peer: &Peer) -> PeerStats {
    let drops = |reason, packets| (packets > 0).then_some((reason, packets)).into_iter().collect();
    PeerStats {
        packets_sent: number(peer, 0),
        bytes_sent: number(peer, 8),
        packets_received: number(peer, 16),
        bytes_received: number(peer, 24),
        dropped_inbound: drops(DropReason::SpoofedSource, number(peer, 32)),
        dropped_outbound: drops(DropReason::SendFailed, number(peer, 48)),
    }
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("encap", &self.encap).field("decap", &self.decap).finish()
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("written", &self.written).finish_non_exhaustive()
    }
}

fn key(block: IpNetwork) -> Key<[u8; 16]> {
    let (len, address) = layout::prefix(block);
    Key::new(len, address)
}

fn whole(ip: IpAddr) -> Key<[u8; 16]> {
    Key::new(128, layout::address(ip))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// Tells the programs of one build from those of another: FNV-1a, 64 bits, over the object file.
pub(super) const fn version() -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while at < OBJECT.len() {
        hash = (hash ^ OBJECT[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// The compiled programs, made of bpf/udp.bpf.c by bpf/build.sh.
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/udp.bpf.o");
const ENCAP: &str = "flannel_encap";
const DECAP: &str = "flannel_decap";

#[cfg(test)]
mod tests;
