//! The programs with their maps, in the kernel.

use std::{io, os::fd::AsRawFd};

use flannel_netlink::state;

use super::{
    content::{Content, Place, Step},
    error::BpfError,
    layout::{COUNTS, Config, Counts, Tally},
    object::Object,
    sys::{Map, Program, Rejected},
};

/// The programs, loaded, with the maps that they share.
#[derive(Debug)]
pub(super) struct Programs {
    maps: Maps,
    send: Program,
    send_id: u32,
    receive: Program,
    receive_id: u32,
    back: Program,
    back_id: u32,
}

#[derive(Debug)]
struct Maps {
    endpoints4: Map,
    endpoints6: Map,
    peers: Map,
    config: Map,
    counts: Map,
}

impl Programs {
    /// Makes new maps and loads the programs.
    pub(super) fn load() -> Result<Self, BpfError> {
        let object = Object::parse(OBJECT).ok_or(BpfError::Object)?;
        let mut made = Vec::new();
        for (name, shape) in &object.maps {
            let map = Map::create(name, *shape);
            let map = map.map_err(|source| BpfError::map("create", name, source))?;
            made.push((map, name.clone()));
        }
        let maps = Maps::sort(made).ok_or(BpfError::Object)?;
        let receive = maps.load(&object, RECEIVE)?;
        let send = maps.load(&object, SEND)?;
        let back = maps.load(&object, RETURN)?;
        Self::new(maps, send, receive, back)
    }

    /// Takes over what an earlier process has loaded, of which the receiving program has this number; `None` if that is not all
    /// there, or another version's.
    ///
    /// Only with `CAP_SYS_ADMIN` are programs found by number.
    pub(super) fn adopt(receive_id: u32) -> Option<Self> {
        let receive = Program::by_id(receive_id).ok()?;
        let found = receive.maps().ok()?.into_iter().map(Map::by_id);
        let maps = Maps::sort(found.collect::<io::Result<_>>().ok()?)?;
        let config = maps.config().ok()??;
        // A route or device that was deleted took its program along.
        let or_load = |id, name| match Program::by_id(id) {
            Ok(program) => Some(program),
            Err(_) => maps.load(&Object::parse(OBJECT)?, name).ok(),
        };
        let send = or_load(config.send, SEND)?;
        let back = or_load(config.back, RETURN)?;
        Self::new(maps, send, receive, back).ok()
    }

    fn new(maps: Maps, send: Program, receive: Program, back: Program) -> Result<Self, BpfError> {
        let id = |program: &Program, name: &str| {
            let failed =
                |source| BpfError::Program { program: name.into(), log: String::new(), source };
            program.id().map_err(failed)
        };
        let (send_id, receive_id) = (id(&send, SEND)?, id(&receive, RECEIVE)?);
        let back_id = id(&back, RETURN)?;
        Ok(Self { maps, send, send_id, receive, receive_id, back, back_id })
    }

    /// What the route of the network runs.
    pub(super) fn sending(&self) -> state::Program {
        // The version counts as well: numbers of programs start again when the machine does, and so may routes.
        let number = u64::from(version() as u32) << 32 | u64::from(self.send_id);
        state::Program { number, descriptor: Some(self.send.as_raw_fd()) }
    }

    pub(super) fn sending_number(&self) -> u32 {
        self.send_id
    }

    /// The program of the network card, and its number.
    pub(super) fn receiving(&self) -> (&Program, u32) {
        (&self.receive, self.receive_id)
    }

    /// The program of the detour device, and its number.
    pub(super) fn returning(&self) -> (&Program, u32) {
        (&self.back, self.back_id)
    }

    /// The settings that stand in the kernel; `None` before there are any.
    pub(super) fn config(&self) -> Result<Option<Config>, BpfError> {
        let config =
            self.maps.config().map_err(|source| BpfError::map("read", "config", source))?;
        Ok(config.filter(|config| config.port != 0))
    }

    pub(super) fn set_config(&self, config: &Config) -> Result<(), BpfError> {
        let set = self.maps.config.set(&FIRST, &config.bytes());
        set.map_err(|source| BpfError::map("write", "config", source))
    }

    /// What stands in the maps of peers.
    pub(super) fn content(&self) -> Result<Content, BpfError> {
        let mut content = Content::default();
        for place in Place::ALL {
            let map = self.maps.of(place);
            let failed = |source| BpfError::map("read", name(place), source);
            let mut last: Option<Vec<u8>> = None;
            while let Some(key) = map.next_key(last.as_deref()).map_err(failed)? {
                // Whoever removes a key while it is read sends the kernel back to the first one.
                let again = !match (place, map.get(&key).map_err(failed)?) {
                    (_, None) => true,
                    (Place::Endpoints4, Some(value)) => put(&mut content.endpoints4, &key, &value),
                    (Place::Endpoints6, Some(value)) => put(&mut content.endpoints6, &key, &value),
                    (Place::Peers, Some(_)) => {
                        key.as_slice().try_into().is_ok_and(|key| content.peers.insert(key))
                    }
                };
                if again {
                    break;
                }
                last = Some(key);
            }
        }
        Ok(content)
    }

    pub(super) fn take(&self, step: &Step) -> Result<(), BpfError> {
        let map = self.maps.of(step.place);
        match step.change.value() {
            Some(value) => map.set(&step.key, value),
            None => map.remove(&step.key),
        }
        .map_err(|source| BpfError::map("write", name(step.place), source))
    }

    pub(super) fn counts(&self) -> Result<Counts, BpfError> {
        let mut places = Vec::new();
        for place in 0..COUNTS as u32 {
            places.push(self.tallies(place)?);
        }
        Ok(Counts::sum(std::array::from_fn(|place| places[place].as_slice())))
    }

    /// How many packets met the end that is counted at this place.
    pub(super) fn count(&self, place: u32) -> Result<u64, BpfError> {
        Ok(Tally::sum(&self.tallies(place)?).packets)
    }

    fn tallies(&self, place: u32) -> Result<Vec<u8>, BpfError> {
        let values = self.maps.counts.get(&place.to_ne_bytes());
        let values = values.map_err(|source| BpfError::map("read", "counts", source))?;
        Ok(values.unwrap_or_default())
    }
}

impl Maps {
    /// Each by its name; `None` if one is missing.
    fn sort(mut maps: Vec<(Map, String)>) -> Option<Self> {
        let mut take = |name: &str| {
            let at = maps.iter().position(|(_, theirs)| theirs == name)?;
            Some(maps.swap_remove(at).0)
        };
        Some(Self {
            endpoints4: take(name(Place::Endpoints4))?,
            endpoints6: take(name(Place::Endpoints6))?,
            peers: take(name(Place::Peers))?,
            config: take("config")?,
            counts: take("counts")?,
        })
    }

    fn of(&self, place: Place) -> &Map {
        match place {
            Place::Endpoints4 => &self.endpoints4,
            Place::Endpoints6 => &self.endpoints6,
            Place::Peers => &self.peers,
        }
    }

    fn named(&self, wanted: &str) -> Option<&Map> {
        match wanted {
            "config" => Some(&self.config),
            "counts" => Some(&self.counts),
            _ => Place::ALL.into_iter().find(|place| name(*place) == wanted).map(|it| self.of(it)),
        }
    }

    fn config(&self) -> io::Result<Option<Config>> {
        Ok(self.config.get(&FIRST)?.and_then(|bytes| Config::parse(&bytes)))
    }

    fn load(&self, object: &Object, name: &str) -> Result<Program, BpfError> {
        let code = object.programs.iter().find(|it| it.name == name).ok_or(BpfError::Object)?;
        let descriptor = |at: usize| {
            let map = object.maps.get(at).and_then(|(name, _)| self.named(name));
            map.map_or(-1, AsRawFd::as_raw_fd)
        };
        let instructions = code.with_maps(descriptor);
        Program::load(code.kind, name, &instructions, &object.license).map_err(
            |Rejected { source, log }| match source.kind() {
                io::ErrorKind::PermissionDenied if log.is_empty() => BpfError::NotPermitted,
                _ => BpfError::Program { program: name.to_owned(), log, source },
            },
        )
    }
}

/// Adds an entry; false if it was there already.
fn put<const K: usize, const V: usize>(
    map: &mut std::collections::BTreeMap<[u8; K], [u8; V]>,
    key: &[u8],
    value: &[u8],
) -> bool {
    match (key.try_into(), value.try_into()) {
        (Ok(key), Ok(value)) => map.insert(key, value).is_none(),
        _ => false,
    }
}

fn name(place: Place) -> &'static str {
    match place {
        Place::Endpoints4 => "endpoints4",
        Place::Endpoints6 => "endpoints6",
        Place::Peers => "peers",
    }
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
pub(super) const OBJECT: &[u8] = include_bytes!("../../bpf/udp.bpf.o");

const SEND: &str = "flannel_send";
const RECEIVE: &str = "flannel_receive";
const RETURN: &str = "flannel_return";
/// The key of the only entry of `config`.
const FIRST: [u8; 4] = [0; 4];
